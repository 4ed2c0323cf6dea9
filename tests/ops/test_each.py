"""One op on some of the sources: what q and k of different head counts need before they are fused."""

import pytest
import torch

from ckptdoctor.errors import PlanError
from ckptdoctor.ops import parse_chain


def test_chosen_sources_are_changed_and_the_others_are_not():
    q, k, v = torch.randn(12, 5), torch.randn(4, 5), torch.randn(4, 5)
    chain = parse_chain("each[0]:rope(3;half)|each[1]:rope(1;half)|concat(0)")
    turned = [parse_chain(f"rope({n};half)").run([x]) for n, x in ((3, q), (1, k))]
    assert torch.equal(chain.run([q, k, v]), torch.cat([*turned, v]))
    assert str(parse_chain(str(chain))) == str(chain)


@pytest.mark.parametrize("text", ["each[3]:transpose(0,1)|concat(0)", "each[0,0]:transpose(0,1)|concat(0)"])
def test_a_source_that_is_not_there_or_named_twice_is_refused(text):
    with pytest.raises(PlanError, match=r"each\[.*once, counted from 0; here are 3"):
        parse_chain(text).out_shape([(2, 2)] * 3)


@pytest.mark.parametrize("text", ["each[]:copy", "each[-1]:copy", "each[0:copy", "each[0]:concat(0)"])
def test_what_cannot_be_read_is_refused(text):
    with pytest.raises(PlanError):
        parse_chain(text)
