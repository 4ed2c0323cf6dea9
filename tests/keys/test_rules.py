"""Rename rules are invertible by construction; what is not is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptdoctor.keys import (
    FirstMatch,
    PatternError,
    Rule,
    cover,
    expand_groups,
    fold_in_order,
    matches,
    unfold,
)

RULES = [
    Rule("layer{i}.**", "stages.{i-1}.**"),
    Rule("**", "model.**"),
    Rule("a.**.{i}.*", "**.{i+2}.b.*"),
    Rule("**.gamma", "**.weight"),
    Rule("x{i}.{j}.*.*", "y.{j}.*.{i}.*"),
    Rule("l.{i:0..3,7}.w", "h{i+1}.w"),
    Rule("e{i}.l{i+1}.w", "{i}.w"),
]
SEGMENTS = st.sampled_from(
    ["layer1", "layer0", "layer07", "stages", "a", "b", "gamma", "weight", "0", "1", "7", "10", "03", "x3",
     "y", "l", "w", "h4", "e1", "l2", "model", "", "e9999999999999999"]
)  # fmt: skip
KEYS = st.lists(SEGMENTS, min_size=1, max_size=5).map(".".join)


@given(st.sampled_from(RULES), KEYS)
def test_a_rule_and_its_inverse_undo_each_other(rule: Rule, key: str) -> None:
    for one in (rule, rule.inverse()):
        new = one.apply(key)
        if new is not None:
            assert one.inverse().apply(new) == key


@given(st.sampled_from(RULES), st.lists(KEYS, unique=True))
def test_no_two_keys_get_one_name(rule: Rule, keys: list[str]) -> None:
    names = [n for k in keys if (n := rule.apply(k)) is not None]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("old", "new", "key", "name"),
    [
        ("layer{i}.**", "stages.{i-1}.**", "layer1.0.conv.weight", "stages.0.0.conv.weight"),
        ("layer{i}.**", "stages.{i-1}.**", "layer0.x", None),  # there is no stage -1
        ("layer{i}.**", "stages.{i-1}.**", "sublayer1.x", None),
        ("layer{i}.**", "stages.{i-1}.**", "layer01.x", None),  # the zero would be lost
        ("fc.*", "head.*", "fc.a.b", None),
        ("a.**", "b.**", "a", "b"),
        ("a.**", "**", "a", None),  # nothing would be left
        ("{i:3..4}.*", "{i+1}.*", "4.w", "5.w"),
        ("{i:3..4}.*", "{i+1}.*", "5.w", None),
        ("e{i}.l{i}.w", "{i}.w", "e1.l2.w", None),
    ],
)
def test_apply(old: str, new: str, key: str, name: str | None) -> None:
    assert Rule(old, new).apply(key) == name


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("a.{i}", "b"),
        ("a", "b.{i}"),
        ("a.{i}", "b.{j}"),
        ("a.**.b.**", "c.**.d.**"),
        ("a.*", "b"),
        ("a.**", "b.*"),
        ("a*.x", "b*.x"),
        ("{i}{j}", "{i}.{j}"),
        ("1{i}", "x.{i}"),
        ("{i}2", "x.{i}"),
        ("{a,b}.x", "{c,d}.x"),
        ("a.{", "b"),
    ],
)
def test_what_is_not_invertible_is_refused(old: str, new: str) -> None:
    with pytest.raises(PatternError):
        Rule(old, new)


PATTERNS = ["a.**", "a.*.w", "a.{i}.w", "a.{i:0..2}.w", "a.3.w", "**.w", "*.{i}.w", "a{i}.b{j}.w", "**"]
PATTERNS += [f"a.{i}.{j}.w" for i in range(3) for j in range(3)] + [f"a.{i}.{{i}}.w" for i in range(6)]


@given(
    st.lists(st.sampled_from(["a", "w", "0", "1", "3", "5", "a1", "b2"]), min_size=1, max_size=4).map(
        ".".join
    )
)
def test_the_index_of_patterns_misses_none(key: str) -> None:
    candidates = FirstMatch(PATTERNS).candidates(key)
    fits = [p for p, text in enumerate(PATTERNS) if Rule(text, text).apply(key) is not None]
    assert set(fits) <= set(candidates)
    assert candidates == sorted(set(candidates))


NUMBERED = [Rule(p, p) for p in PATTERNS] + [
    Rule("a.{i}.**", "b.x{i+1}.**"),
    Rule("a.{i:1..3}.w", "a%s.{i-2}.w"),
    Rule("a.{i}.{j}.*", "{j}.{i}.*"),
    Rule("a{i}.b{i+1}.w", "ab.{i}.w"),
    Rule("**.{i}.w", "**.{i+1:0..4}.w"),
    Rule("*.**.w", "*.**"),
]


@given(
    st.lists(
        st.sampled_from(["a", "w", "0", "1", "3", "5", "a1", "b2", "a%s", "a#", "01", "", "x1y2", "9" * 16]),
        min_size=1,
        max_size=5,
    ).map(".".join)
)
def test_many_rules_at_once_give_what_each_gives(key: str) -> None:
    for rules in (NUMBERED, RULES, NUMBERED[:2], NUMBERED[-3:]):
        new = [(p, name) for p, r in enumerate(rules) if (name := r.apply(key)) is not None]
        many = FirstMatch.of(rules)
        assert list(many.renamings(key)) == new
        assert many.first(key) == (new[0] if new else None)
        assert list(many.renamings(key)) == new  # what it knows of the form by now


@given(st.lists(KEYS, min_size=2))
def test_rules_that_know_a_form_keep_keys_apart(keys: list[str]) -> None:
    many = FirstMatch.of(RULES)
    for key in keys:
        assert list(many.renamings(key)) == [
            (p, name) for p, r in enumerate(RULES) if (name := r.apply(key)) is not None
        ]


def test_lists_fold_in_their_order() -> None:
    experts = [f"x.{{i}}.e.{e}.{w}.weight" for e in range(4) for w in ("w1", "w3")]
    assert fold_in_order(experts) == ["x.{i}.e.{0..3}.{w1,w3}.weight"]
    assert expand_groups("x.{i}.e.{0..3}.{w1,w3}.weight") == experts
    assert fold_in_order(["b.x", "a.y"]) == ["b.x", "a.y"]


@given(st.lists(st.lists(st.sampled_from("abc01"), min_size=1, max_size=3).map(".".join), max_size=8))
def test_folding_in_order_is_exact(texts: list[str]) -> None:
    assert [p for t in fold_in_order(texts) for p in expand_groups(t)] == texts
    assert [p for t in fold_in_order(texts) for p in unfold(t)] == texts


@given(st.sets(KEYS), st.sets(KEYS))
def test_a_cover_fits_exactly_the_wanted_keys(wanted: set[str], others: set[str]) -> None:
    universe = sorted(wanted | others)
    patterns = cover(wanted, universe)
    assert {k for k in universe if any(matches(p, k) for p in patterns)} == wanted


def test_a_cover_is_short() -> None:
    keys = [f"layer{i}.bn{j}.{leaf}" for i in range(4) for j in range(3) for leaf in ("weight", "steps")]
    assert cover([k for k in keys if k.endswith("steps")], keys) == ["**.steps"]
    assert cover([k for k in keys if k.startswith("layer2")], keys) == ["layer2.**"]
    assert cover(keys, keys) == ["**"]


@pytest.mark.parametrize(
    ("old", "new"), [("a.{i}", "b"), ("a.b", "b.{i}"), ("a.*", "b"), ("a.**", "b.*"), ("a.{i}", "b.{j}")]
)
def test_two_patterns_that_are_no_rule_rename_nothing(old: str, new: str) -> None:
    with pytest.raises(PatternError):
        FirstMatch(["x", old], ["y", new])
