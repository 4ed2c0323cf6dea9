"""Another depth of the same architecture is named with the right numbers of blocks."""

from __future__ import annotations

import pytest

from benchmarks.cases import read_case
from benchmarks.mutations import mutate
from ckptdoctor.align import align
from ckptdoctor.trees import ParamTree
from tests.align.pairs import FIXTURES, linear, tree

D = 16


@pytest.mark.parametrize(("has", "wants"), [(4, 6), (6, 4)])
@pytest.mark.parametrize("own", ["scale", "weight"])
def test_blocks_are_counted_without_what_stands_beside_them(has: int, wants: int, own: str) -> None:
    def stack(name: str, depth: int) -> ParamTree:
        blocks = [linear(f"{name}.{i}.{part}", D, D) for i in range(depth) for part in ("attn", "fc")]
        return tree({f"{name}.{own}": (7,)}, *blocks)

    refusal = align(stack("layers", has), stack("blocks", wants)).refusal
    assert refusal.startswith(f"the checkpoint has {has} blocks where the model has {wants}, ")


def test_a_numbered_module_beside_its_family_name_is_no_crash() -> None:
    case = mutate(read_case(FIXTURES / "cases" / "T1_compile_timm_vit.json.gz"), "model side", 362879)
    assert case is not None
    assert {"norm.gamma", "norm1.gamma", "blocks2.norm1.gamma"} <= set(case.target.specs)
    assert align(case.source, case.target).verdict == "incompatible"
