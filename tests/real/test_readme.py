"""Everything that the documents show was printed by the program: their commands are run again here.

In a fence marked `console`, a line that begins with `$ ` is a command and the lines below are what it prints;
`...` stands for any text of a line or, alone, for any lines. Fences marked `python` are run, those of one
document in one namespace. `UPDATE_DOCS=1 pytest tests/real/test_readme.py` writes what is printed now into
them.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = ["README.md", "docs/plan.md", "docs/api.md", "docs/training.md", "docs/trust.md"]
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
# What the reader of the README is about to run.
LOAD = """import torch
from model import ONet

checkpoint = torch.load("onet_ddp.pth", map_location="cpu")
ONet().load_state_dict(checkpoint["state_dict"])
"""
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ (.*(?:\\\n.*)*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)


@dataclass(frozen=True)
class Shown:
    """A command, and the lines that the document shows below it."""

    command: str
    lines: list[str]

    def fits(self, printed: list[str]) -> bool:
        cut = [
            r"(?:.*\n)*" if s == "..." else ".*".join(map(re.escape, s.split("..."))) + r"\n"
            for s in self.lines
        ]
        return re.fullmatch("".join(cut), "".join(f"{line}\n" for line in printed)) is not None


def fences(text: str, language: str) -> Iterator[re.Match[str]]:
    return (match for match in FENCE.finditer(text) if match[1] == language)


def shown(text: str) -> list[Shown]:
    blocks = (match[2] for match in fences(text, "console"))
    return [Shown(c[1], [s.rstrip() for s in c[2].splitlines()]) for b in blocks for c in COMMAND.finditer(b)]


def shell(command: str, scene: Path) -> list[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "COLUMNS": "80", "NO_COLOR": "1"}
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=scene,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    return [line.rstrip() for line in done.stdout.rstrip().splitlines()]


@pytest.fixture
def scene(real: Callable[[str], Path], tmp_path: Path) -> Path:
    """The directory that the documents play in: the demo's model and its checkpoint."""
    for name in ("model.py", "original.py", "save.py"):
        shutil.copy(ROOT / "demo" / name, tmp_path)
    (tmp_path / "load.py").write_text(LOAD)
    printed = shell(f"python save.py {real('facenet_pytorch/data/onet.pt')} onet_ddp.pth", tmp_path)
    assert (tmp_path / "onet_ddp.pth").exists(), printed
    return tmp_path


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_print_what_is_shown(document: str, scene: Path) -> None:
    path = ROOT / document
    text, wrong = path.read_text(), []
    for example in shown(text):
        printed = shell(example.command, scene)
        if example.fits(printed):
            continue
        wrong.append("\n".join([f"$ {example.command}", *printed]))
        broken = any(line.startswith(("internal error", "Traceback")) for line in printed)
        old = "".join(f"{line}\n" for line in [f"$ {example.command}", *example.lines])
        new = "".join(f"{line}\n" for line in [f"$ {example.command}", *printed])
        if not broken and not any("..." in line for line in example.lines):
            text = text.replace(old, new)
    if os.environ.get("UPDATE_DOCS"):
        path.write_text(text)
    assert not wrong, f"{document} shows something else than\n\n" + "\n\n".join(wrong)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_examples_run(document: str, scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(scene)
    monkeypatch.syspath_prepend(str(scene))
    names: dict[str, object] = {}
    for number, match in enumerate(fences((ROOT / document).read_text(), "python"), 1):
        exec(compile(match[2], f"{document}, example {number}", "exec"), names)
    for name in ("model", "original"):  # they are of this scene only
        sys.modules.pop(name, None)


def test_the_first_screen_shows_a_problem_and_its_repair() -> None:
    commands = [example.command for example in shown((ROOT / "README.md").read_text())]
    assert any(c.startswith("ckptdoctor diagnose") for c in commands[:3])
    assert any(c.startswith("ckptdoctor repair") for c in commands[:4])


@pytest.mark.parametrize("document", PAGES)
def test_links_and_paths_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text()
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    lost = [link for link in links if not ((ROOT / document).parent / link).exists()]
    makes = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    lost += [f"make {t}" for t in re.findall(r"\bmake ([a-z]+)`", text) if t not in makes]
    assert not lost
