"""What the findings say, where a rule's examples cannot show it."""

from __future__ import annotations

import pytest

from ckptdoctor.align.model import Alignment, Choice, Match, Question, Strip, Unused
from ckptdoctor.diagnosis import Diagnosis, foreign_devices, percent, python_form
from ckptdoctor.diagnostics import Diagnostic
from ckptdoctor.errors import DecisionError
from ckptdoctor.reports.text import diagnosis_page
from ckptdoctor.rules import Case, rules
from ckptdoctor.rules.strips import strip_all
from ckptdoctor.rules.undecided import choice_lines
from ckptdoctor.rules.words import count, flag, human, shape_text
from tests.rules.build import archive, diagnose, target, tree

CONV = {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,)}


def codes(seen: Diagnosis) -> list[str]:
    return [d.code for d in seen.diagnostics]


def only(seen: Diagnosis, code: str) -> Diagnostic:
    (found,) = [d for d in seen.diagnostics if d.code == code]
    return found


def narrated(code: str, alignment: Alignment, **more: object) -> list[Diagnostic]:
    """One rule over an alignment made by hand."""
    source = more.pop("source", {"a": (2, 3)})
    model = more.pop("model", {"a": (2, 3)})
    case = Case(
        archive=archive(("", source)),
        target=target(model),
        state_dict="",
        source=tree(source),
        alignment=alignment,
        **more,
    )
    return list(next(r for r in rules() if r.code == code).check(case))


def test_a_head_with_other_rows_is_drawn_side_by_side() -> None:
    seen = diagnose(
        CONV | {"fc.weight": (1000, 8), "fc.bias": (1000,)}, CONV | {"fc.weight": (10, 8), "fc.bias": (10,)}
    )
    assert codes(seen) == ["CKD301"]
    found = seen.diagnostics[0]
    assert found.title == "`fc` has 1000 rows in the checkpoint, 10 in the model"
    assert [line.text.split() for line in found.evidence] == [
        ["checkpoint", "model"],
        ["fc.weight", "1000", "x", "8", "10", "x", "8"],
        ["fc.bias", "1000", "10"],
    ]
    assert found.helps[0].command == "--reinit 'fc.**'"
    assert set(found.keys) == {"fc.weight", "fc.bias"}


def test_a_decision_becomes_a_note_and_the_rest_is_repairable() -> None:
    model = CONV | {"fc.weight": (10, 8), "fc.bias": (10,)}
    seen = diagnose(
        {f"module.{k}": v for k, v in (CONV | {"fc.weight": (1000, 8), "fc.bias": (1000,)}).items()},
        model,
        "reinit=fc.**",
    )
    assert seen.verdict == "repairable"
    assert only(seen, "CKD202").severity == "note"
    assert "as you decided" in only(seen, "CKD202").title
    assert "CKD301" not in codes(seen)


def test_a_transform_names_its_ops_and_both_shapes() -> None:
    match = Match("a", "safe", ("a",), ("transpose(0,1)",), ("proved by its family",))
    (found,) = narrated("CKD302", Alignment({"a": match}, verdict="repairable"), model={"a": (3, 2)})
    assert [(line.mark, line.text.strip()) for line in found.evidence] == [
        ("-", "a   2 x 3"),
        (" ", "transpose(0,1)"),
        ("+", "a   3 x 2"),
    ]
    assert found.fix is not None
    assert found.fix.applicability == "safe"
    (found,) = narrated("CKD302", Alignment({"a": match._replace(status="unsafe")}), model={"a": (3, 2)})
    assert found.fix is not None
    assert found.fix.applicability == "unsafe"


def test_an_invisible_layout_is_a_warning() -> None:
    (found,) = narrated("CKD306", Alignment({}, warnings=("fused qkv crosses families",)))
    assert (found.severity, found.title) == ("warning", "fused qkv crosses families")


def test_what_the_planner_refuses_is_said_in_its_words() -> None:
    (found,) = narrated("CKD207", Alignment({}), problem="two steps collide")
    assert found.title == "two steps collide"


def test_flags_that_fit_nothing_are_not_offered() -> None:
    question = Question(
        "equal-shapes",
        "?",
        ("a",),
        ("a",),
        flags=(("--drop 'nosuch.**'", ""), ("--drop a", ""), ("--drop 'a", ""), ("--accept x", "")),
    )
    match = Match("a", "undecided", choices=(Choice(("a",)),))
    (found,) = narrated("CKD204", Alignment({"a": match}, questions=(question,), verdict="undecided"))
    assert [h.command for h in found.helps] == ["--drop a", "--accept x"]


def test_undecided_keys_with_the_same_choices_stand_together() -> None:
    pool = tuple(Choice((f"heads.{name}.w",)) for name in ("valence", "arousal"))
    lines = choice_lines([Match(f"heads.{n}.w", "undecided", choices=pool[:: 1 - 2 * n]) for n in (0, 1)])
    assert [f"{line.mark} {line.text}" for line in lines] == [
        "+ heads.{0..1}.w",
        "- heads.arousal.w",
        "- heads.valence.w",
    ]


def test_undecided_keys_that_differ_by_block_stand_together_only_then() -> None:
    def match(target: int, source: int) -> Match:
        ways = (Choice((f"b.{source}.x",)), Choice((f"b.{source}.x",), ("transpose(0,1)",)))
        return Match(f"m.{target}.w", "undecided", choices=ways)

    lines = choice_lines([match(n, n + 1) for n in range(4)])
    assert [f"{line.mark} {line.text}" for line in lines] == [
        "+ m.{0..3}.w",
        "- b.{1..4}.x   as it is or through transpose(0,1)",
    ]
    crossed = choice_lines([match(0, 0), match(1, 5)])
    assert [line.text for line in crossed if line.mark == "+"] == ["m.0.w", "m.1.w"]


@pytest.mark.parametrize("prefix", ["module", "_orig_mod", "module._orig_mod", "_orig_mod.module", "model"])
def test_a_prefix_is_drawn_under_its_own_letters(prefix: str) -> None:
    seen = diagnose({f"{prefix}.{k}": v for k, v in CONV.items()}, CONV)
    assert seen.verdict == "repairable"
    for found in seen.diagnostics:
        key, caret = found.evidence
        start, length = caret.text.index("^"), caret.text.count("^")
        segment = key.text[start : start + length]
        assert segment.rstrip(".") in prefix
        assert f"`{segment}`" in found.title


def test_a_wrapper_that_both_sides_have_is_not_mentioned() -> None:
    keys = {f"module.{k}": v for k, v in CONV.items()}
    assert diagnose(keys, keys).diagnostics == ()


def test_stripping_goes_by_segments() -> None:
    strips = [Strip("module", "", False, 0), Strip("_orig_mod", "", True, 0), Strip("a.b", "", True, 0)]
    keys = [
        "module.x",
        "mymodule.x",
        "x.module.y",
        "q._orig_mod.w",
        "q._orig_modx.w",
        "a.b.c",
        "a.bc.d",
        "x.a.b",
    ]
    assert list(strip_all(keys, strips).values()) == [
        "x", "mymodule.x", "x.module.y", "q.w", "q._orig_modx.w", "c", "a.bc.d", "x.a.b",
    ]  # fmt: skip


def test_a_reader_says_that_bytes_are_wrong_then_nothing_is_offered() -> None:
    bad = Diagnostic("CKD405", "bad-crc", "error", "wrong bytes")
    seen = diagnose(CONV, CONV, diagnostics=(bad,))
    assert (seen.verdict, seen.ok) == ("incompatible", False)


@pytest.mark.parametrize(
    ("more", "verdict"),
    [
        ({}, "compatible"),
        ({"format": "torch-legacy"}, "compatible"),
        ({"format": "safetensors"}, "compatible"),
        ({"format": "torchscript"}, "repairable"),
        ({"format": "torch-index"}, "repairable"),
        ({"unknown_globals": ("my.Class",)}, "repairable"),
        ({"rest": {"epoch": "int 3"}}, "repairable"),
    ],
)
def test_compatible_is_what_plain_torch_loads_strictly(more: dict[str, object], verdict: str) -> None:
    assert diagnose(CONV, CONV, **more).verdict == verdict


def test_other_devices_count_only_when_this_machine_lacks_them() -> None:
    tags = {"a": "cpu", "b": "meta", "c": "nosuch:1", "d": "cuda:4096", "e": "xla:0"}
    keys = {k: ((1,), {"device": d}) for k, d in tags.items()}
    assert foreign_devices(tree(keys)) == ("nosuch:1", "cuda:4096", "xla:0")
    assert foreign_devices(None) == ()


def test_every_finding_accounts_for_unused_keys() -> None:
    alignment = Alignment(
        {"a": Match("a", "safe", ("a",))},
        {"b": Unused("b", "nothing takes it", False), "c": Unused("c", "training state", True)},
        verdict="undecided",
    )
    source = {"a": (2, 3), "b": (4,), "c": (5,)}
    open_, done = narrated("CKD203", alignment, source=source)
    assert (open_.severity, open_.keys) == ("error", ("b",))
    assert (done.severity, done.keys, done.why) == ("note", ("c",), "training state")


@pytest.mark.parametrize("value", ["nosuch", "state_dic", "weigh"])
def test_a_choice_that_is_not_there_is_an_error(value: str) -> None:
    with pytest.raises(DecisionError, match=value):
        diagnose(CONV, CONV, f"choose={value}")


@pytest.mark.parametrize(
    ("command", "python"),
    [
        ("--reinit 'fc.**'", "decisions=['reinit=fc.**']"),
        ("--drop a --drop 'b c'", "decisions=['drop=a', 'drop=b c']"),
        ("ckptdoctor inspect x", "ckptdoctor inspect x"),
        ("--drop 'a", "--drop 'a"),
    ],
)
def test_flags_in_pythons_form(command: str, python: str) -> None:
    assert python_form(command) == python


def test_shares_never_round_to_all_or_nothing() -> None:
    assert [percent(x) for x in (0.0, 1e-9, 0.5, 0.99999, 1.0)] == [
        "0 %", "0.1 %", "50.0 %", "99.9 %", "100 %",
    ]  # fmt: skip


def test_words() -> None:
    assert [count(n, "key") for n in (0, 1, 1234)] == ["0 keys", "1 key", "1,234 keys"]
    assert [human(n) for n in (0, 9999, 118_000, 25_610_205, 7 * 10**9)] == [
        "0", "9,999", "118 k", "25.6 M", "7.0 G",
    ]  # fmt: skip
    assert [shape_text(s) for s in ((), (3,), (1000, 2048))] == ["scalar", "3", "1000 x 2048"]
    assert flag("reinit", "fc.*") == "--reinit 'fc.*'"


def test_a_hundred_thousand_keys_take_one_line() -> None:
    model = {
        f"layers.{i}.{part}.{leaf}": (2, 3)
        for i in range(10_000)
        for part in ("attn", "mlp", "norm", "out", "gate")
        for leaf in ("weight", "bias")
    }
    seen = diagnose({f"module.{k}": v for k, v in model.items()}, model)
    page = diagnosis_page(seen).plain()
    assert codes(seen) == ["CKD101"]
    assert "strip `module.` from 100,000 keys [safe]" in page
    assert len(page.splitlines()) < 15
