"""Plans as programs do exactly what `apply` does, and whatever keys say, they stay data."""

from __future__ import annotations

import ast
import keyword
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ckptdoctor.apply import file_contents
from ckptdoctor.errors import PlanError
from ckptdoctor.ops import OPS, parse_chain
from ckptdoctor.ops.bits import same_bits
from ckptdoctor.plan import expand
from ckptdoctor.plan.export import FORMS, export
from ckptdoctor.plan.export.names import find_names
from ckptdoctor.plan.export.tensors import HELPERS, TEMPLATES, expression
from ckptdoctor.plan.model import Plan, Rename, Result, SourceRef, TargetRef
from ckptdoctor.planner import make_plan
from ckptdoctor.trees import ParamTree, TensorSpec
from tests.plan import libraries
from tests.plan.cases import NAMES, load

EXAMPLES = [(text, shapes) for op in OPS.values() for text, shapes in op.EXAMPLES]


def tensors(specs: Any) -> dict[str, torch.Tensor]:
    """A value for every key, each another one."""
    generator = torch.Generator().manual_seed(3)
    made = {}
    for key, spec in specs.items():
        dtype = getattr(torch, spec.dtype)
        value = torch.randint(0, 100, spec.shape, generator=generator)
        made[key] = value.to(dtype)
    return made


def namespace(program: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "converted"}
    exec(compile(program, "converted.py", "exec"), names)
    return names


def module_of(target: ParamTree) -> nn.Module:
    """A module whose state dict has the keys and shapes of a tree."""
    root = nn.Module()
    known: dict[str, nn.Parameter] = {}
    for key, spec in target.specs.items():
        *path, leaf = key.split(".")
        module = root
        for name in path:
            if name not in module._modules:
                module.add_module(name, nn.Module())
            module = module._modules[name]
        value = torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype))
        if value.is_floating_point():
            group = spec.storage or key
            module.register_parameter(leaf, known.setdefault(group, nn.Parameter(value)))
        else:
            module.register_buffer(leaf, value)
    return root


def values_for(plan: Plan, source: ParamTree, target: ParamTree) -> dict[str, torch.Tensor]:
    """Tensors for a checkpoint; names that the model ties have one value."""
    old, fills = tensors(source.specs), expand(plan, source, target).fills
    for group in target.ties:
        names = [fills[k].sources[0] for k in group if fills[k].kind == "load"]
        old.update(dict.fromkeys(names, old[names[0]]))
    return old


def small(source: ParamTree) -> bool:
    return sum(s.numel for s in source.specs.values()) < 40_000_000


def complete(name: str) -> tuple[Plan, ParamTree, ParamTree] | None:
    alignment, source, target = load(name)
    try:
        plan = make_plan(alignment, source, target, file=f"{name}.pth", model_label="m")
    except PlanError:
        return None
    return (plan, source, target) if plan.complete and small(source) else None


CASES = {name: found for name in NAMES if (found := complete(name)) is not None}


def test_enough_real_cases_are_exported() -> None:
    assert len(CASES) > 15
    assert any(step.op == "transform" for plan, _, _ in CASES.values() for step in plan.step)


@pytest.mark.parametrize("name", CASES)
def test_programs_do_what_apply_does(name: str) -> None:
    plan, source, target = CASES[name]
    old = values_for(plan, source, target)
    made = file_contents(
        expand(plan, source, target), old.__getitem__, target, initial=tensors(target.specs).__getitem__
    )
    want = {key: piece.make() for key, piece in made.pieces.items() if piece.make is not None}
    assert want.keys() == target.specs.keys()
    try:
        program = export(plan, source, target, "python")
    except PlanError as error:
        assert "no form in plain torch" in str(error)
        return
    got = namespace(program)["convert"](old, tensors(target.specs))
    assert got.keys() == want.keys()
    assert all(same_bits(got[k], want[k]) for k in want), [k for k in want if not same_bits(got[k], want[k])]
    if not plan.step:
        with pytest.raises(PlanError, match="nothing to do"):
            export(plan, source, target, "hook")
        return
    model = module_of(target)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    namespace(export(plan, source, target, "hook"))["install"](model)
    model.load_state_dict(OrderedDict(old))
    own = {k for k, fill in expand(plan, source, target).fills.items() if fill.kind in ("keep", "reinit")}
    state = model.state_dict()
    assert all(same_bits(state[k], before[k] if k in own else want[k]) for k in want)
    model.load_state_dict(want), "a new state dict goes through unchanged"
    assert all(same_bits(model.state_dict()[k], want[k]) for k in want)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("form", ["mmengine", "transformers"])
def test_mappings_rename_as_the_plan_does_or_are_refused(name: str, form: str) -> None:
    plan, source, target = CASES[name]
    fills = expand(plan, source, target)
    try:
        text = export(plan, source, target, form)
    except PlanError as error:
        only = all(f.kind == "load" and not f.ops and len(f.sources) == 1 for f in fills.fills.values())
        twice = len({f.sources for f in fills.fills.values()}) < len(fills.fills) or target.ties
        assert not only or fills.unused or twice, f"{error}, though it is nothing but renames"
        assert "use python or hook" in str(error)
        return
    table = namespace(text)["REVISE_KEYS" if form == "mmengine" else "KEY_MAPPING"]
    renamed = getattr(libraries, form)(source.specs, table)
    assert renamed == {fill.sources[0]: key for key, fill in fills.fills.items()}


def test_some_real_cases_can_be_said_in_either_mapping() -> None:
    for form in ("mmengine", "transformers"):
        said = 0
        for plan, source, target in CASES.values():
            try:
                export(plan, source, target, form)
                said += 1
            except PlanError:
                continue
        assert said >= 5, form


@pytest.mark.parametrize(("text", "shapes"), EXAMPLES, ids=[t for t, _ in EXAMPLES])
def test_every_op_has_the_same_bits_or_is_refused(text: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    complex_ = text.startswith("as_real")
    dtype = torch.complex64 if complex_ else torch.float32
    values = [torch.randn(s, generator=generator, dtype=dtype) for s in shapes]
    chain = parse_chain(text)
    try:
        code = expression([text], shapes)
    except PlanError as error:
        assert "no form in plain torch" in str(error)
        assert chain.effect != "exact", "what only moves values always has a form"
        return
    names: dict[str, Any] = {"torch": torch}
    for helper in HELPERS.values():
        exec(helper, names)
    assert same_bits(eval(code, names, {"t": values}), chain.run(values))


def test_ops_with_a_form_exist() -> None:
    assert TEMPLATES.keys() <= OPS.keys()


def renaming(moves: dict[str, str], shape: tuple[int, ...] = (2,)) -> tuple[Plan, ParamTree, ParamTree]:
    """A plan of one rename a key, written without patterns."""
    from ckptdoctor.keys import escape

    source = ParamTree({k: TensorSpec(shape) for k in moves})
    target = ParamTree({k: TensorSpec(shape) for k in moves.values()})
    plan = Plan(
        source=SourceRef(file="a'''\"\"\".pth", tree=source.digest, keys=len(source)),
        target=TargetRef(model="m\n)", tree=target.digest, keys=len(target)),
        step=tuple(Rename(from_=escape(a), to=escape(b), keys=1) for a, b in moves.items() if a != b),
        result=Result(loaded=len(moves), unchanged=sum(a == b for a, b in moves.items())),
    )
    return plan, source, target


HOSTILE = st.lists(
    st.sampled_from(
        [*"ab.'\"\\{}()[],#:%\n\r\t \x00$^*+?|", '"""', "'''", "\\x41", "{0}", "__import__('os')", "é", "\u202e", "1"]
    ),
    min_size=1,
    max_size=8,
).map("".join)  # fmt: skip


@given(st.lists(HOSTILE, min_size=2, max_size=10, unique=True))
@settings(max_examples=60)
def test_law_names_stay_data_in_every_program(names: list[str]) -> None:
    half = len(names) // 2
    moves = dict(zip(names[:half], names[half : 2 * half], strict=True))
    plan, source, target = renaming(moves)
    _, benign_source, benign_target = benign = renaming({f"k{i}": f"n{i}" for i in range(half)})
    for form in ("python", "hook"):
        tree = ast.parse(export(plan, source, target, form))
        plain = ast.parse(export(benign[0], benign_source, benign_target, form))
        assert shape_of(tree) == shape_of(plain)
        values = {s.targets[0].id: s.value for s in tree.body if isinstance(s, ast.Assign)}
        prefixes, whole = (ast.literal_eval(values[n]) for n in ("PREFIXES", "NAMES"))
        assert (tuple(prefixes), whole) == (find_names(moves).prefixes, find_names(moves).whole)
    old = tensors(source.specs)
    got = namespace(export(plan, source, target, "python"))["convert"](old)
    assert {k: v.tolist() for k, v in got.items()} == {moves[k]: v.tolist() for k, v in old.items()}


def shape_of(tree: ast.Module) -> list[str]:
    """A program without the tables of its data."""
    body = [s for s in tree.body if not isinstance(s, ast.Assign)]
    return [ast.dump(s) for s in body] + [
        ast.dump(s.targets[0]) for s in tree.body if isinstance(s, ast.Assign)
    ]


@given(
    st.permutations(["a.x", "b.x", "c.x", "a", "b", "d.a.x"]),
    st.permutations(["a.x", "b.x", "c.x", "a", "e", "f"]),
)
@settings(max_examples=100)
def test_law_swaps_and_chains_are_exact_in_every_form(old: list[str], new: list[str]) -> None:
    moves = dict(zip(old, new, strict=True))
    plan, source, target = renaming(moves)
    for form in ("mmengine", "transformers"):
        table = namespace(export(plan, source, target, form))[
            "REVISE_KEYS" if form == "mmengine" else "KEY_MAPPING"
        ]
        assert getattr(libraries, form)(moves, table) == moves
    assert all(find_names(moves).rename(a) == b for a, b in moves.items())


def test_the_script_runs_without_ckptdoctor(tmp_path: Path) -> None:
    plan, source, target = renaming({"module.a.w": "a.w", "module.b.w": "b.w"})
    (tmp_path / "convert.py").write_text(export(plan, source, target, "python"))
    old = tensors(source.specs)
    torch.save(old, tmp_path / "old.pth")
    block = "import sys; sys.modules['ckptdoctor'] = None; import runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", block, "convert.py", "old.pth", "new.pth"],
        cwd=tmp_path, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    new = torch.load(tmp_path / "new.pth", weights_only=True)
    assert {k: v.tolist() for k, v in new.items()} == {
        k.removeprefix("module."): v.tolist() for k, v in old.items()
    }
    other = {k: torch.zeros(3) for k in old}
    torch.save(other, tmp_path / "old.pth")
    done = subprocess.run(
        [sys.executable, "convert.py", "old.pth", "newer.pth"],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode != 0 and "not the names and shapes" in done.stderr
    assert not (tmp_path / "newer.pth").exists()


def test_a_swap_without_a_version_is_not_guessed() -> None:
    plan, source, target = renaming({"a": "b", "b": "a"})
    model = module_of(target)
    namespace(export(plan, source, target, "hook"))["install"](model)
    old = OrderedDict(tensors(source.specs))
    with pytest.raises(RuntimeError, match="no version"):
        model.load_state_dict(old)
    old._metadata = {"": {"version": 1}}
    model.load_state_dict(old)
    assert torch.equal(model.state_dict()["b"], old["a"])
    saved = model.state_dict()
    model.load_state_dict(saved)
    assert torch.equal(model.state_dict()["b"], old["a"]), "its own state dict says that it is new"


@pytest.mark.parametrize("form", ["mmengine", "transformers"])
def test_what_a_mapping_cannot_say_is_refused(form: str) -> None:
    plan, source, target = renaming({"a b": "c"})
    with pytest.raises(PlanError, match="names of letters"):
        export(plan, source, target, form)


def test_the_forms_are_those_of_the_command_line() -> None:
    from ckptdoctor.cli.examining import FORMS as offered

    assert offered == FORMS
    assert not any(keyword.iskeyword(form) for form in FORMS)


def test_a_hook_works_in_a_part_of_a_larger_model() -> None:
    plan, source, target = renaming({"layer1.w": "stages.0.w", "b": "b"})
    part = module_of(target)
    whole = nn.Module()
    whole.add_module("net", part)
    namespace(export(plan, source, target, "hook"))["install"](part)
    old = tensors(source.specs)
    whole.load_state_dict({f"net.{k}": v for k, v in old.items()})
    assert torch.equal(whole.state_dict()["net.stages.0.w"], old["layer1.w"])
    with pytest.raises(RuntimeError, match="Missing key"):
        whole.load_state_dict({f"net.{k}": v for k, v in old.items() if k != "b"})


@pytest.mark.parametrize(
    ("path", "checkpoint"),
    [
        ("", {"a": 1}),
        ("state_dict", {"state_dict": {"a": 1}, "state": 3}),
        ("model.ema", {"model": {"ema": {"a": 1}}}),
        ("model.ema", {"model.ema": {"a": 1}, "model": {"b": 2}}),
        ("models[1]", {"models": [None, {"a": 1}]}),
        ("models[0].net", {"models": [{"net": {"a": 1}}]}),
    ],
)
def test_the_script_finds_the_state_dict_inside(path: str, checkpoint: Any) -> None:
    plan, source, target = renaming({"a": "b"})
    assert namespace(export(plan, source, target, "python"))["find"](checkpoint, path) == {"a": 1}


def test_an_op_on_some_sources_is_written_for_those_only() -> None:
    values = [torch.randn(4, 3), torch.randn(6, 3)]
    text = "each[1]:rope(1;half)|concat(0)"
    names: dict[str, Any] = {"torch": torch}
    made = eval(expression([text], [(4, 3), (6, 3)]), names, {"t": values})
    assert torch.equal(made, parse_chain(text).run(values))
    assert torch.equal(made[:4], values[0])
