"""Models named in source: what is built, and what each way to fail says."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ckptdoctor.targets import load_target
from tests.targets.sources import NET, NET_SHAPES, Write, error, shapes

# -- what works


def test_class_with_arguments(write: Write) -> None:
    write(NET)
    target = load_target("model.py:Net", kwargs={"num_classes": 7, "wide": True})
    assert shapes(target) == {**NET_SHAPES, "conv.weight": (8, 3, 3, 3), "conv.bias": (8,)} | {
        "fc.weight": (7, 4),
        "fc.bias": (7,),
    }
    assert (target.label, target.place) == ("model.py:Net", "model.py:4")
    assert target.place_of("fc.weight") == "model.py:8"
    assert target.place_of("unheard.of") == "model.py:4"
    assert target.tree["fc.weight"].device == "cpu"
    assert target.tree.modules == {"": "Net", "conv": "Conv2d", "fc": "Linear"}
    assert target.notes == ()


@pytest.mark.parametrize("name", ["make", "instance", "Holder.instance", "Holder.make", "Holder.Inner"])
def test_functions_instances_and_dotted_names(write: Write, name: str) -> None:
    write(
        NET
        + """
        def make(): return Net()
        instance = Net()
        class Holder:
            instance = Net()
            class Inner(Net): pass
            @classmethod
            def make(cls): return Net()
        """.replace("\n        ", "\n")
    )
    assert shapes(load_target(f"model.py:{name}")) == NET_SHAPES


def test_the_place_of_an_instance_is_its_assignment(write: Write) -> None:
    write("blocks = nn.Linear(1, 2)\nmodel = nn.Sequential(blocks)")
    target = load_target("model.py:model")
    assert (target.place, target.place_of("0.weight")) == ("model.py:4", "model.py:4")


def test_importable_modules(write: Write) -> None:
    write(NET, "pkg/nets.py")
    write("", "pkg/__init__.py", "")
    assert shapes(load_target("pkg.nets:Net")) == NET_SHAPES
    assert load_target("torch.nn:Linear", kwargs={"in_features": 2, "out_features": 3}).tree[
        "weight"
    ].shape == (3, 2)


def test_files_import_their_neighbours_as_python_does(write: Write) -> None:
    write("from torch.nn import Linear as Head", "nets/parts.py", "")
    write("from parts import Head\nimport top\nmodel = Head(2, top.size)", "nets/model.py", "")
    write("size = 5", "top.py", "")
    assert load_target("nets/model.py:model").tree["weight"].shape == (5, 2)


def test_relative_imports_inside_a_package(write: Write) -> None:
    write("", "pkg/__init__.py", "")
    write("", "pkg/sub/__init__.py", "")
    write(NET, "pkg/parts.py")
    write("from ..parts import Net\nmodel = Net()", "pkg/sub/model.py", "")
    assert shapes(load_target("pkg/sub/model.py:model")) == NET_SHAPES


def test_file_names_that_are_no_identifiers_or_hide_a_library(write: Write) -> None:
    assert shapes(load_target(write(NET, "my net-2.py") + ":Net")) == NET_SHAPES
    assert shapes(load_target(write(NET, "random.py") + ":Net")) == NET_SHAPES


def test_prints_do_not_disturb(write: Write, capfd: pytest.CaptureFixture[str]) -> None:
    write(NET + "import os, sys\nprint('{' * 100_000)\nos.write(1, b'raw')\nmodel = Net()")
    assert shapes(load_target("model.py:model")) == NET_SHAPES
    assert capfd.readouterr() == ("", "")


def test_nothing_is_left_in_the_folder(write: Write, tmp_path: Path) -> None:
    write(NET, "parts.py")
    write("from parts import Net")
    load_target("model.py:Net")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.py", "parts.py"]


def test_this_process_imports_no_torch(write: Write) -> None:
    write(NET)
    code = (
        "import sys; from ckptdoctor.targets import load_target; assert load_target('model.py:Net').tree; "
        "print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


# -- how it is built


def test_values_initialisation_and_gpus_are_not_needed(write: Write) -> None:
    write("""
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.big = nn.Linear(200_000, 200_000, device="cuda")  # 160 GB
            self.pos = nn.Parameter(torch.randn(1, 100_000, 100_000, device="cuda:1") * 0.02)
            nn.init.trunc_normal_(self.pos, std=0.02)
            nn.init.kaiming_normal_(self.big.weight)
            self.cuda().to("cuda").half()
    """)
    target = load_target("model.py:Net")
    assert target.tree["big.weight"].shape == (200_000, 200_000)
    assert target.tree["pos"].dtype == "float16"
    assert target.notes == ()


def test_constructors_that_need_values_are_built_on_the_cpu(write: Write) -> None:
    write("""
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            rates = [x.item() for x in torch.linspace(0, 3, 4)]
            self.layers = nn.ModuleList(nn.Linear(1, int(rate) + 1) for rate in rates)
            with torch.no_grad():
                size = nn.Conv2d(1, 2, 3)(torch.zeros(1, 1, 8, 8)).numel()
            self.fc = nn.Linear(size, 1)
            self.tied = nn.Linear(size, 1)
            self.tied.weight.data = self.fc.weight.data
    """)
    target = load_target("model.py:Net")
    assert target.tree["layers.3.weight"].shape == (4, 1)
    assert target.tree["fc.weight"].shape == (1, 72)
    assert target.tree.ties == (("fc.weight", "tied.weight"),)
    assert target.notes[0].startswith("built on the CPU, not on meta: model.py:7: NotImplementedError")


def test_meta_and_cpu_builds_agree_with_torch(write: Write) -> None:
    write("""
    from torch.nn.utils import parametrizations as p
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = nn.TransformerEncoderLayer(8, 2, 16)
            self.rnn = nn.LSTM(3, 4, bidirectional=True)
            self.emb = nn.Embedding(5, 4)
            self.out = nn.Linear(4, 5, bias=False)
            self.out.weight = self.emb.weight
            self.norm = p.weight_norm(nn.Conv1d(2, 3, 1))
            self.register_buffer("freq", 1.0 / 10000 ** (torch.arange(0, 8, 2).float() / 8), persistent=False)
            self.register_buffer("ids", torch.arange(7).expand((1, -1)))
            self.wrapped = nn.DataParallel(nn.BatchNorm2d(3))
    class Valued(Net):
        def __init__(self):
            super().__init__()
            assert self.emb.weight.tolist()
    """)
    fast = load_target("model.py:Net")
    valued = load_target("model.py:Valued")
    assert not fast.notes
    assert valued.notes
    code = (
        "import json, model; state = model.Net().state_dict(); "
        "print(json.dumps([[k, list(v.shape), str(v.dtype)] for k, v in state.items()]))"
    )
    expected = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for target in (fast, valued):
        rows = [[k, list(s.shape), f"torch.{s.dtype}"] for k, s in target.tree.specs.items()]
        assert rows == json.loads(expected)
        assert target.tree["ids"].strides in (None, (0, 1), (7, 1))
        assert target.tree.ties == (("emb.weight", "out.weight"),)
        assert list(target.tree.transient) == ["freq"]
    assert fast.tree.digest == valued.tree.digest
    assert [s.strides for s in fast.tree.specs.values()] == [s.strides for s in valued.tree.specs.values()]


# -- what fails before torch is imported


def test_missing_file(write: Write) -> None:
    write(NET)
    assert error("modle.py:Net") == "modle.py does not exist; beside it there is `model.py`"
    assert error("no/where.py") == "no/where.py does not exist: there is no folder no"


def test_syntax_error(write: Write) -> None:
    write("class Net(nn.Module):\n    def __init__(self:\n        pass\n")
    assert error("model.py").startswith("model.py:4: syntax error:")
    assert "| def __init__(self:" in error("model.py:Net")


def test_not_python(write: Write, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_bytes(b"\x00\x01" * 20)
    assert error("model.py").startswith("model.py")
    (tmp_path / "dir.py").mkdir()
    assert error("dir.py") == "dir.py is not a file"


@pytest.mark.parametrize("text", ["model.pt", "Net", "no such thing", "", "a:b:c", "pkg.nets"])
def test_what_is_no_model_at_all(write: Write, text: str) -> None:
    assert "model.py:name" in error(text)


def test_names_and_arguments_that_make_no_sense(write: Write) -> None:
    write(NET)
    assert "is not a name" in error("model.py:Net()")
    assert "plain JSON" in error("model.py:Net", kwargs={"num_classes": object()})
    assert "--kwargs" in error("model.py:Net", kwargs=[1])
    assert "timeout" in error("model.py:Net", timeout=0)


# -- what the code does


def test_syntax_error_in_an_imported_file(write: Write) -> None:
    write("x = = 1", "parts.py", "")
    write("import parts")
    words = error("model.py:Net")
    assert words.startswith("parts.py:1: syntax error:")
    assert "| x = = 1" in words


def test_missing_package(write: Write) -> None:
    write("import cv2_not_there.sub\n")
    words = error("model.py:Net")
    assert words.startswith("model.py:3: no module named `cv2_not_there`")
    assert "pip install cv2_not_there" in words
    assert "PYTHONPATH" in words
    assert error("not_there_either:Net").startswith("no module named `not_there_either`")


def test_missing_name(write: Write) -> None:
    write(NET + "class Holder:\n    model = Net()\n")
    assert error("model.py:Nett") == "model.py has no `Nett`; did you mean `model.py:Net`?"
    assert (
        error("model.py:Holder.modle")
        == "model.py:Holder has no `modle`; did you mean `model.py:Holder.model`?"
    )
    assert "it has `Net`" in error("model.py:zzz")


def test_missing_arguments(write: Write) -> None:
    write("""
    class Net(nn.Module):
        def __init__(self, num_classes, width: float, name: str = "x"): super().__init__()
    """)
    words = error("model.py:Net")
    assert "`model.py:Net` needs arguments: `num_classes`, `width`" in words
    assert """--kwargs '{"num_classes": 10, "width": 0.1}'""" in words
    words = error("model.py:Net", kwargs={"num_clases": 3, "width": 1})
    assert "does not take `num_clases`; did you mean `num_classes`?" in words
    assert "needs an argument: `num_classes`" in words


def test_arguments_of_an_instance(write: Write) -> None:
    write(NET + "model = Net()")
    assert "is a model already" in error("model.py:model", kwargs={"num_classes": 2})


def test_constructor_raises(write: Write) -> None:
    write("""
    def check(width):
        if width > 1:
            raise ValueError("too \\x1b[31mwide")
    class Net(nn.Module):
        def __init__(self, width=2):
            print("about to check")
            super().__init__()
            check(width)
    """)
    words = error("model.py:Net")
    assert words.startswith(r"model.py:6: building Net raises ValueError: too \x1b[31mwide")
    assert '| raise ValueError("too' in words
    assert "it printed last:\n  | about to check" in words


def test_error_inside_torch_names_the_line_of_the_user(write: Write) -> None:
    write("""
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, groups=2)
    """)
    assert error("model.py:Net").startswith(
        "model.py:7: building Net raises ValueError: in_channels must be divisible"
    )


def test_a_download_that_fails_says_how_to_do_without(write: Write) -> None:
    write("from urllib.error import URLError\ndef make(pretrained=True):\n    raise URLError('no network')")
    assert "--kwargs '{\"pretrained\": false}'" in error("model.py:make")


def test_a_failure_on_meta_and_another_on_the_cpu_are_both_told(write: Write) -> None:
    write("""
    def make():
        if torch.zeros(1).is_meta:
            raise RuntimeError("reads values")
        raise MemoryError("too large")
    """)
    words = error("model.py:make")
    assert "raises MemoryError: too large" in words
    assert "on meta: RuntimeError: reads values" in words


def test_import_raises(write: Write) -> None:
    write("weights = open('not-there.txt')")
    assert error("model.py:Net").startswith("model.py:3: importing model.py raises FileNotFoundError:")


def test_sys_exit(write: Write) -> None:
    write("import argparse\nargparse.ArgumentParser(prog='train').parse_args(['--bad'])")
    words = error("model.py:Net")
    assert words.startswith("model.py:4: model.py:Net calls sys.exit(2) while importing model.py")
    assert "unrecognized arguments: --bad" in words


def test_endless(write: Write) -> None:
    write("def make():\n    while True:\n        print('busy')\n")
    start = time.monotonic()
    words = error("model.py:make", timeout=4)
    assert "building make took more than 4 s; give it more with --timeout 10" in words
    assert words.startswith("model.py:")
    assert "| busy" in words
    assert time.monotonic() - start < 10


def test_endless_beside_another_thread(write: Write) -> None:
    write("""
    import threading, time
    def nap(): time.sleep(600)
    def make():
        threading.Thread(target=nap).start()
        return time.sleep(600)
    """)
    assert error("model.py:make", timeout=4).startswith("model.py:8: building make took more than 4 s")


def test_children_die_with_it(write: Write, tmp_path: Path) -> None:
    write("""
    import subprocess, sys
    def make():
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        open("pid", "w").write(str(child.pid))
        return nn.Linear(1, 1)
    """)
    assert len(load_target("model.py:make").tree) == 2
    pid = int((tmp_path / "pid").read_text())
    for _ in range(50):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.1)
    else:
        pytest.fail("a child of the user's code is still running")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import os; os.kill(os.getpid(), 11)", "Python was ended by SIGSEGV while building make"),
        ("import os; os.kill(os.getpid(), 9)", "ended by SIGKILL (the system may have run out of memory)"),
        ("import os; os._exit(0)", "Python ended with exit code 0 and without an error while building make"),
    ],
    ids=["segfault", "killed", "os._exit"],
)
def test_sudden_death(write: Write, code: str, words: str) -> None:
    write(f"def make():\n    print('last words')\n    {code}\n")
    said = error("model.py:make")
    assert words in said
    assert "| last words" in said


def test_segfault_names_the_line(write: Write) -> None:
    write("import ctypes\ndef make():\n    ctypes.string_at(0)\n")
    assert error("model.py:make").startswith("model.py:5: Python was ended by SIGSEGV")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def make(): return nn.Linear(1, 1), 3", "`model.py:make` returns tuple of 2, not an nn.Module"),
        ("def make(): return nn.Linear", "`model.py:make` returns the class Linear"),
        ("make = {'a': 1}", "`model.py:make` is dict of 1, not an nn.Module"),
        ("def make(): pass", "`model.py:make` returns None"),
    ],
)
def test_no_module(write: Write, code: str, words: str) -> None:
    write(code)
    assert words in error("model.py:make")


def test_lazy_model(write: Write) -> None:
    write("make = nn.Sequential(nn.LazyLinear(2))")
    assert "`model.py:make`: Sequential has 2 lazy tensors" in error("model.py:make")


def test_torch_is_not_installed(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(NET)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch': raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n"
        "sys.meta_path.insert(0, Block())\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    assert "pip install 'ckptdoctor[torch]'" in error("model.py:Net")


def test_a_stray_library_in_the_working_directory_is_not_taken_for_ours(write: Write) -> None:
    write("raise RuntimeError('the wrong json')", "json.py", "")
    write("raise RuntimeError('the wrong torch')", "torch.py", "")
    write(NET, "nets/model.py")
    assert shapes(load_target("nets/model.py:Net")) == NET_SHAPES
