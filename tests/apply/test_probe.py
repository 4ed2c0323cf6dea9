"""Forward parity on request: what a probe sees that shapes do not, and that nothing stays when it fails."""

import copy
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

import ckptdoctor as ckd
from ckptdoctor.errors import ApplyError, ProbeError, ReadError, TargetError

NET = """
import torch
from torch import nn

class Net(nn.Module):
    # q and k are rotated in halves; a checkpoint may have them in pairs, in the same shapes.
    def __init__(self, width=8):
        super().__init__()
        self.q = nn.Linear(width, width)
        self.drop = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x):
        a, b = self.q(x).chunk(2, -1)
        return self.norm(self.drop(torch.cat([a - 2 * b, b + 2 * a], -1)))

class Broken(Net):
    def forward(self, x):
        raise RuntimeError("no such luck")
"""


def networks(name="Net"):
    namespace: dict[str, type] = {}
    exec(NET, namespace)
    return namespace[name]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model's source, its checkpoint under another name, and one whose rows are in another order."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    trained = networks()().eval()
    for tensor in (*trained.parameters(), trained.norm.running_mean):
        nn.init.normal_(tensor)
    x = torch.randn(3, 8)
    with torch.no_grad():
        torch.save({"inputs": x, "expected": trained(x)}, "probe.pt")
    state = {f"module.{k}": v for k, v in trained.state_dict().items()}
    torch.save(state, "good.pth")
    rows = [0, 4, 1, 5, 2, 6, 3, 7]
    torch.save({k: v[rows] if k.startswith("module.q.") else v for k, v in state.items()}, "turned.pth")
    return tmp_path


def bits(model):
    return {k: (v.clone(), v.data_ptr()) for k, v in model.state_dict().items()}


def unchanged(model, before):
    now = model.state_dict()
    return list(now) == list(before) and all(
        torch.equal(now[k], v) and now[k].data_ptr() == at for k, (v, at) in before.items()
    )


def test_a_right_load_passes_and_the_receipt_says_what_was_compared(here):
    model = networks()()
    model.drop.eval()
    generator = torch.get_rng_state()
    receipt = ckd.auto_load(model, "good.pth", probe="probe.pt")
    assert receipt.loaded == 7 and receipt.probe.values == 24 and receipt.probe.largest < 1e-5
    largest = torch.load("probe.pt")["expected"].abs().max().item()
    assert (receipt.probe.rtol, receipt.probe.atol) == (1e-4, pytest.approx(1e-5 * largest))
    assert "probe: 24 values of 1 output as expected within rtol=0.0001, atol=" in str(receipt)
    assert receipt.to_dict()["probe"]["outputs"] == 1
    assert model.training and model.norm.training and not model.drop.training, "as it was"
    assert model.norm.num_batches_tracked == 0 and torch.equal(torch.get_rng_state(), generator)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert ckd.auto_load(networks()(), "good.pth").probe is None


def test_rows_in_another_order_load_without_a_probe_and_are_rolled_back_with_one(here):
    model = networks()()
    before = bits(model)
    with pytest.raises(
        ProbeError, match=r"the output: \d+ of 24 values differ, most by .* at \[\d, \d\] \("
    ) as seen:
        ckd.auto_load(model, "turned.pth", probe="probe.pt")
    assert "(rtol=0.0001, atol=" in str(seen.value) and "layout that no shape shows" in str(seen.value)
    assert unchanged(model, before) and model.training
    assert ckd.auto_load(model, "turned.pth").loaded == 7, "shapes and names show nothing"


def test_a_plan_is_probed_as_well(here):
    plan = ckd.plan(networks()(), "turned.pth")
    model = networks()()
    before = bits(model)
    with pytest.raises(ProbeError):
        ckd.apply(plan, "turned.pth", model=model, probe="probe.pt")
    with pytest.raises(ProbeError):
        ckd.auto_load(model, "turned.pth", plan=plan, probe="probe.pt")
    assert unchanged(model, before)


def test_a_file_is_written_only_when_the_model_built_for_real_passes(here):
    plan = ckd.plan("net.py:Net", "good.pth")
    receipt = ckd.apply(plan, "good.pth", out="good.safetensors", probe="probe.pt")
    assert receipt.probe.values == 24
    networks()().load_state_dict(__import__("safetensors.torch").torch.load_file("good.safetensors"))
    wrong = ckd.plan("net.py:Net", "turned.pth")
    for out in ("turned.safetensors", "turned_out.pth"):
        with pytest.raises(ProbeError, match="no file was written"):
            ckd.apply(wrong, "turned.pth", out=out, probe="probe.pt")
        assert not Path(out).exists() and not list(Path().glob("*partial*"))


def test_a_file_probe_needs_a_model_that_can_be_built(here):
    plan = ckd.plan(networks()(), "good.pth")
    with pytest.raises(ApplyError, match="can be built"):
        ckd.apply(plan, "good.pth", model=networks()(), out="out.pth", probe="probe.pt")
    with pytest.raises(TargetError, match="cannot be built, so no probe"):
        ckd.apply(plan, "good.pth", model=ckd.snapshot(networks()()), out="out.pth", probe="probe.pt")
    assert not Path("out.pth").exists()


def test_a_model_that_cannot_run_on_the_probe_is_not_loaded(here):
    model = networks("Broken")()
    before = bits(model)
    with pytest.raises(ProbeError, match=r"cannot run.*no such luck"):
        ckd.auto_load(model, "good.pth", probe="probe.pt")
    assert unchanged(model, before)
    plan = ckd.plan("net.py:Broken", "good.pth")
    with pytest.raises(
        ProbeError, match=r"no file was written\. net\.py:\d+: running Broken on the probe.*luck"
    ):
        ckd.apply(plan, "good.pth", out="out.pth", probe="probe.pt")
    assert not Path("out.pth").exists()


class Outputs(nn.Module):
    """Gives whatever it is told to, of its one parameter."""

    def __init__(self, make):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3))
        self.make = make

    def forward(self, *args, **kwargs):
        return self.make(self.w, *args, **kwargs)


def check(make, inputs, expected, tmp_path, **more):
    torch.save({"w": torch.tensor([1.0, 2.0, 3.0])}, tmp_path / "w.pth")
    model = Outputs(make)
    return ckd.auto_load(
        model, tmp_path / "w.pth", probe={"inputs": inputs, "expected": expected, **more}
    ).probe


Pair = namedtuple("Pair", "first second")


@dataclass
class Result:
    logits: torch.Tensor
    hidden: tuple


W = torch.tensor([1.0, 2.0, 3.0])
GOOD = {
    "one tensor": (lambda w, x: w * x, torch.tensor(2.0), W * 2),
    "arguments": (lambda w, x, y: w * x + y, (torch.tensor(2.0), torch.tensor(1.0)), W * 2 + 1),
    "keywords": (lambda w, x, scale: w * x * scale, {"x": W, "scale": 3}, W * W * 3),
    "a dict, some of it": (lambda w, x: {"logits": w, "cache": object()}, W, {"logits": W}),
    "a dataclass": (lambda w, x: Result(w, (w, w + 1)), W, {"logits": W, "hidden": (W, W + 1)}),
    "a named tuple": (lambda w, x: Pair(w, w * 2), W, (W, W * 2)),
    "a list with a gap": (lambda w, x: [w, None, 2], W, (W, None, 2)),
    "whole numbers": (lambda w, x: (w.argmax(), w > 1), W, (torch.tensor(2), W > 1)),
    "complex": (lambda w, x: torch.complex(w, w), W, torch.complex(W, W)),
    "not a number": (lambda w, x: w / torch.tensor([0.0, 1, 1]) * 0, W, torch.tensor([float("nan"), 0, 0])),
    "another dtype": (lambda w, x: w.half() * 1.001, W, W),
}


@pytest.mark.parametrize("case", GOOD)
def test_outputs_of_every_shape_are_compared(case, tmp_path):
    make, inputs, expected = GOOD[case]
    assert check(make, inputs, expected, tmp_path, **({"atol": 0.0} if case == "not a number" else {})).values


BAD = {
    "too far": (lambda w, x: w * 1.01, W, r"3 of 3 values differ, most by 0\.03 at \[2\] \(3\.03 where 3 is"),
    "infinite": (lambda w, x: w / torch.tensor([1.0, 0, 1]), W, r"most by inf at \[1\] \(inf where 2"),
    "not a number": (lambda w, x: w * float("nan"), W, r"most by inf .*nan where"),
    "shape": (lambda w, x: w[None], W, r"the output is \[1,3\], expected \[3\]"),
    "no such output": (lambda w, x: {"a": w}, {"b": W}, r"`b` should be a tensor \[3\].*nothing there"),
    "a dict where a tensor is due": (lambda w, x: {"a": w}, W, r"the model gives a dict of a"),
    "a longer tuple": (lambda w, x: (w, w), (W,), r"`\[0\]` should be a tensor"),
    "off by one": (
        lambda w, x: w.long() + torch.tensor([0, 0, 1]),
        W.long(),
        r"1 of 3 values differ, most by 1",
    ),
    "no data": (lambda w, x: object(), W, r"the model gives <object>"),
    "only one of two": (lambda w, x: {"a": w, "b": {"c": w + 1}}, {"a": W, "b": {"c": W}}, r"`b\.c`: 3 of 3"),
    "imaginary": (lambda w, x: torch.complex(w, w), torch.complex(W, -W), r"3 of 3 values"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_differs_is_named_with_its_place_and_size(case, tmp_path):
    make, expected, why = BAD[case]
    with pytest.raises(ProbeError, match=why):
        check(make, W, expected, tmp_path)


def test_the_tolerance_is_that_of_the_coarsest_dtype_unless_it_is_given(tmp_path):

    def near(w, x):
        return w * 1.005

    with pytest.raises(ProbeError):
        check(near, W, W, tmp_path)
    assert check(near, W, W, tmp_path, rtol=0.01).rtol == 0.01
    assert check(near, W, W.half(), tmp_path).rtol == 1e-2
    assert check(lambda w, x: w.double(), W, W.double(), tmp_path).rtol == 1e-4, "the parameters are float32"
    with pytest.raises(ProbeError):
        check(lambda w, x: w * 1.00005, W, W, tmp_path, rtol=0, atol=0)


def test_small_outputs_are_held_to_their_own_size(tmp_path):
    """An absolute tolerance that fits logits would let anything pass beside probabilities."""
    small, wrong = (W * 1e-6, W * 1e-6), lambda w, x: (w * 1e-6, w.flip(0) * 1e-6)
    assert check(lambda w, x: (w * 1e-6, w * 1e-6), W, small, tmp_path).atol == pytest.approx(3e-11)
    with pytest.raises(ProbeError, match=r"`\[1\]`: 2 of 3"):
        check(wrong, W, small, tmp_path)
    with pytest.raises(ProbeError, match=r"`\[1\]`: 2 of 3"):
        check(lambda w, x: (w * 1e6, w.flip(0) * 1e-6), W, (W * 1e6, W * 1e-6), tmp_path)


@pytest.mark.parametrize(
    ("expected", "more", "why"),
    [
        ({}, {}, "holds no values"),
        (torch.zeros(0), {}, "holds no values"),
        (None, {}, "holds no values"),
        (torch.zeros(3), {}, "zeros would pass"),
        (torch.full((3,), 1e-5), {"atol": 1e-4}, "zeros would pass"),
        (W, {"atol": 10.0}, "zeros would pass"),
        (W, {"atol": -1.0}, "atol is -1"),
        (W, {"rtol": float("nan")}, "rtol is nan"),
        ({"a": "text"}, {}, "expects a str"),
    ],
)
def test_a_probe_that_proves_nothing_is_refused_and_nothing_is_loaded(expected, more, why, tmp_path):
    torch.save({"w": W}, tmp_path / "w.pth")
    model = Outputs(lambda w, x: w)
    with pytest.raises(ApplyError, match=why):
        ckd.auto_load(model, tmp_path / "w.pth", probe={"inputs": W, "expected": expected, **more})
    assert not model.w.any()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({"inputs": W}, "found inputs"),
        ({"inputs": W, "expected": W, "tolerance": 1}, "found inputs, expected, tolerance"),
        ([W, W], "found list"),
        ({}, "found an empty one"),
        (b"no torch file", "is no probe"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_is_no_probe_is_refused_by_name(content, why, here):
    if isinstance(content, bytes):
        Path("other.pt").write_bytes(content)
    elif content is not None:
        torch.save(content, "other.pt")
    model = networks()()
    before = bits(model)
    with pytest.raises(ReadError, match=rf"other\.pt.*{why}"):
        ckd.auto_load(model, "good.pth", probe="other.pt")
    assert unchanged(model, before)
    with pytest.raises(ApplyError, match="a probe is"):
        ckd.auto_load(model, "good.pth", probe=3)


def test_a_probe_file_cannot_run_code(here):
    class Evil:
        def __reduce__(self):
            return Path.touch, (Path("touched"),)

    torch.save({"inputs": Evil(), "expected": W}, "evil.pt")
    with pytest.raises(ReadError, match=r"evil\.pt is no probe"):
        ckd.auto_load(networks()(), "good.pth", probe="evil.pt")
    assert not Path("touched").exists()


def test_a_forward_pass_that_writes_to_the_model_is_found_and_to_its_inputs_is_harmless(tmp_path):
    torch.save({"w": W}, tmp_path / "w.pth")

    def writes(w, x):
        with torch.no_grad():
            out = w.clone()
            w.add_(1)
            x.zero_()
        return out

    model, x = Outputs(writes), W.clone()
    with pytest.raises(ckd.CkptDoctorError, match="`w` is not"):
        ckd.auto_load(model, tmp_path / "w.pth", probe=(x, W))
    assert not model.w.any() and torch.equal(x, W)


def test_a_meta_model_a_half_model_and_a_wrapped_one_are_probed_where_they_end(here):
    probe = torch.load("probe.pt")
    with torch.device("meta"):
        model = networks()()
    assert ckd.auto_load(model, "good.pth", probe=probe).probe.values == 24
    half = networks()().half()
    given = {"inputs": probe["inputs"].half(), "expected": probe["expected"], "rtol": 0.05, "atol": 0.05}
    assert ckd.auto_load(half, "good.pth", probe=given).probe.rtol == 0.05
    wrapped = nn.DataParallel(networks()())
    assert ckd.auto_load(wrapped, "good.pth", probe=copy.deepcopy(probe)).loaded == 7
