"""A build is called unchanged only when nothing that it has read has changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ckptdoctor.contract import check_project
from ckptdoctor.targets.inputs import Inputs
from ckptdoctor.targets.source import build_recorded

MODEL = """\
import importlib
import os
from pathlib import Path

from torch import nn

import parts.blocks
from sizes import WIDTH

try:
    import local_override
except ImportError:
    local_override = None
try:
    importlib.import_module("plugins.extra")
except ImportError:
    pass

HERE = Path(__file__).parent
DEPTH = int((HERE / "depth.txt").read_text())
CLASSES = int(os.environ.get("NET_CLASSES", "3"))
NAMES = sorted(os.listdir(HERE / "heads"))
WIDE = (HERE / "wide.flag").exists()


class Net(nn.Sequential):
    def __init__(self):
        layers = [parts.blocks.block(WIDTH) for _ in range(DEPTH)]
        super().__init__(*layers, nn.Linear(WIDTH, CLASSES))
"""


def lay(root: Path) -> None:
    (root / "parts").mkdir(parents=True)
    (root / "heads").mkdir()
    (root / "heads" / "a").write_text("")
    (root / "parts" / "__init__.py").write_text("")
    (root / "parts" / "blocks.py").write_text(
        "from torch import nn\n\n\ndef block(n):\n    return nn.Linear(n, n)\n"
    )
    (root / "sizes.py").write_text("WIDTH = 4\n")
    (root / "depth.txt").write_text("2")
    (root / "model.py").write_text(MODEL)
    (root / "train.py").write_text("import model\n")
    old = 1_600_000_000
    for path in root.rglob("*"):
        os.utime(path, (old, old))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Inputs]:
    root = tmp_path_factory.mktemp("inputs")
    lay(root)
    # ctime cannot be set back; a build right after a checkout is sure once its files are a moment old.
    import time

    time.sleep(0.2)
    target, inputs = build_recorded("model.py:Net", root, None, 60)
    assert len(target.tree) == 6
    assert inputs is not None
    return root, inputs


CHANGES: dict[str, Callable[[Path], None]] = {
    "the model": lambda r: (r / "model.py").write_text(MODEL + "\n"),
    "a module": lambda r: (r / "sizes.py").write_text("WIDTH = 5\n"),
    "a module in a package": lambda r: (r / "parts" / "blocks.py").write_text("x = 1\n"),
    "a file that is read": lambda r: (r / "depth.txt").write_text("3"),
    "a file that is read is gone": lambda r: (r / "depth.txt").unlink(),
    "a folder that is listed": lambda r: (r / "heads" / "b").write_text(""),
    "a file that is looked for": lambda r: (r / "wide.flag").write_text(""),
    "a module that was not there": lambda r: (r / "local_override.py").write_text(""),
    "a package that was not there": lambda r: (r / "plugins").mkdir(),
    "a module that comes before an installed one": lambda r: (r / "torch.py").write_text(""),
}
HARMLESS: dict[str, Callable[[Path], None]] = {
    "nothing": lambda r: None,
    "training code": lambda r: (r / "train.py").write_text("import model, os\n"),
    "a new script": lambda r: (r / "evaluate.py").write_text(""),
    "a folder of results": lambda r: (r / "runs").mkdir(),
    "the same content, written again": lambda r: (r / "sizes.py").write_text("WIDTH = 4\n"),
}


@pytest.mark.parametrize("what", [*CHANGES, *HARMLESS])
def test_changes_are_seen(what: str, built: tuple[Path, Inputs], tmp_path: Path) -> None:
    root, inputs = built
    assert not inputs.unsure
    assert not inputs.changed(), "before"
    # The record names absolute paths, so the folder itself is changed and put back.
    import shutil

    shutil.copytree(root, tmp_path / "kept", copy_function=shutil.copy2)
    try:
        {**CHANGES, **HARMLESS}[what](root)
        assert bool(inputs.changed()) is (what in CHANGES), inputs.changed()
    finally:
        shutil.rmtree(root)
        shutil.copytree(tmp_path / "kept", root, copy_function=shutil.copy2)


def test_variables_of_the_environment_are_seen(
    built: tuple[Path, Inputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, inputs = built
    monkeypatch.setenv("SOMETHING_ELSE", "1")
    assert not inputs.changed()
    monkeypatch.setenv("NET_CLASSES", "4")
    assert inputs.changed() == "NET_CLASSES"
    assert "4" not in inputs.environ.values(), "values are never kept"


def test_what_cannot_be_measured_again_is_never_called_unchanged(tmp_path: Path) -> None:
    unsure = {
        "dict(os.environ)": "environment",
        "subprocess.run(['true'])": "another program",
        "socket.socket().connect_ex(('127.0.0.1', 9))": "connection",
    }
    for number, (code, words) in enumerate(unsure.items()):
        source = "import os, socket, subprocess\nfrom torch import nn\n" + code + "\nclass Net(nn.Linear):\n"
        (tmp_path / f"m{number}.py").write_text(
            source + "    def __init__(self):\n        super().__init__(2, 3)\n"
        )
        _, inputs = build_recorded(f"m{number}.py:Net", tmp_path, None, 60)
        assert inputs is not None and words in inputs.unsure, code
        assert inputs.changed()


def test_a_record_survives_json(built: tuple[Path, Inputs]) -> None:
    import json

    _, inputs = built
    assert Inputs.from_dict(json.loads(json.dumps(inputs.to_dict()))) == inputs


def test_a_broken_cache_is_no_cache(tmp_path: Path) -> None:
    lay(tmp_path)
    settings = '[tool.ckptdoctor]\n[[tool.ckptdoctor.model]]\nname = "net"\nentry = "model.py:Net"\n'
    (tmp_path / "pyproject.toml").write_text(settings)
    cache = tmp_path / ".ckptdoctor_cache"
    cache.mkdir()
    for text in ("", "{", "[]", '{"request": {}}'):
        (cache / "net.json").write_text(text)
        from ckptdoctor.contract.cache import cached_tree
        from ckptdoctor.contract.units import open_project

        project = open_project(tmp_path)
        assert cached_tree(project, project.units[0]) is None
    assert check_project(tmp_path).models == {"net": "built"}
