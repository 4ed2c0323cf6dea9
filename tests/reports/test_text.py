"""The terminal report: what it says, in which order, and what it never does."""

import io
import re
import shlex
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptdoctor.diagnosis import Diagnosis
from ckptdoctor.diagnostics import Diagnostic, Fix, Help, Line
from ckptdoctor.reports.finding import BUDGET, Options, folded
from ckptdoctor.reports.page import Page, cut, emit
from ckptdoctor.reports.text import diagnosis_page
from tests.rules.build import archive, diagnose, target

FULL = Diagnostic(
    code="CKD101",
    name="wrapper-prefix",
    severity="error",
    title="every key in the checkpoint starts with `module.`",
    place="r50.pth",
    place_note="torch zip, 2 tensors",
    evidence=(Line("module.fc.weight"), Line("^^^^^^^ written by torch.nn.DataParallel", "^")),
    why="all of them do",
    notes=("a note",),
    fix=Fix("strip `module.` from 2 keys", "safe"),
    helps=(Help("--accept x", "take the risk"),),
)

EXPECTED = """\
error[CKD101]: every key in the checkpoint starts with `module.`
  --> r50.pth  torch zip, 2 tensors
   |
   |   module.fc.weight
   |   ^^^^^^^ written by torch.nn.DataParallel
   |
   = why: all of them do
   = note: a note
   = fix: strip `module.` from 2 keys [safe]
   = help: --accept x   take the risk

Found 1 error: 1 with a safe fix."""


def canned(*diagnostics: Diagnostic, verdict: str = "repairable") -> Diagnosis:
    keys = {"fc.weight": (2, 3), "fc.bias": (2,)}
    return Diagnosis(archive(("", keys), path="r50.pth"), target(keys), verdict, diagnostics)


def text(diagnosis: Diagnosis, **options: object) -> str:
    return diagnosis_page(diagnosis, Options(**options)).plain()


def test_a_finding_is_drawn_like_this() -> None:
    assert text(canned(FULL)).startswith(EXPECTED)


def test_a_compatible_checkpoint_is_one_line() -> None:
    seen = diagnose({"fc.weight": (2, 3)}, {"fc.weight": (2, 3)})
    assert text(seen) == "ckpt.pth loads into model.py:net as is: 1 tensor, 6 values."


def test_the_verdict_and_the_command_come_last() -> None:
    lines = text(diagnose({"module.a.w": (2, 3)}, {"a.w": (2, 3)})).splitlines()
    assert lines[-5:] == [
        "Found 1 error: 1 with a safe fix.",
        "After the fixes 1 of 1 tensor loads, 100 % of the model's values.",
        "",
        "  next: ckptdoctor repair model.py:net ckpt.pth -o ckpt_repaired.pth",
        "  more: ckptdoctor explain CKD101",
    ]


@pytest.mark.parametrize("findings", [1, 5, 12, 30])
def test_a_report_is_short(findings: int) -> None:
    many = tuple(Line(f"key{i}.weight", "+") for i in range(100))
    errors = [replace(FULL, code=f"CKD{500 + i}", evidence=many) for i in range(min(findings, 3))]
    notes = [replace(FULL, code="CKD600", severity="note", evidence=many)] * (findings - len(errors))
    lines = text(canned(*errors, *notes)).splitlines()
    assert len(lines) <= BUDGET + findings
    assert max(map(len, lines)) <= 80
    assert len(text(canned(*errors, *notes), verbose=True).splitlines()) > 100 * findings


def test_what_is_folded_is_counted_and_a_pair_stays_together() -> None:
    lines = [Line(f"{n}.{side}", side) for n in range(20) for side in "-+"]
    shown = folded(lines, 8)
    assert shown[-1].text == f"and {40 - len(shown) + 1} more lines like it (-v)"
    assert len(shown) <= 9
    assert shown[-2].mark == "+"


def test_nothing_is_folded_that_needs_as_many_lines_as_the_words_about_it() -> None:
    lines = [Line(str(n)) for n in range(9)]
    assert folded(lines, 8) == lines


HOSTILE = "a\x1b[31m\r\n\x07‮\u2028b"


def test_control_characters_of_a_file_never_reach_the_terminal() -> None:
    seen = diagnose(
        {f"module.{HOSTILE}.w": (2, 3), f"{HOSTILE}.extra": (9, 9)},
        {f"{HOSTILE}.w": (2, 3), f"{HOSTILE}.head": (3, 7)},
        rest={HOSTILE: HOSTILE},
        path=f"{HOSTILE}.pth",
    )
    for verbose in (False, True):
        printed = text(seen, verbose=verbose)
        assert not re.search(r"[^\x20-\x7e\n]", printed), printed
    assert not re.search(r"[^\x20-\x7e\n]", repr(seen))


def test_a_key_with_quotes_and_blanks_makes_a_command_that_the_shell_reads_back() -> None:
    odd = "he ad'$(x)"
    seen = diagnose({"a.w": (2, 3)}, {"a.w": (2, 3), f"{odd}.w": (5, 4), f"{odd}.b": (5,)})
    command = next(line for line in text(seen).splitlines() if "ckptdoctor plan" in line)
    words = shlex.split(command)
    assert words[words.index("--reinit") + 1] == f"{odd}.**"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def written(stream: io.StringIO) -> str:
    page = Page()
    page.add(("error", "error"), ": words")
    emit(page, stream)
    return stream.getvalue()


@pytest.fixture
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    return monkeypatch


def test_colours_are_for_terminals(plain_environment: pytest.MonkeyPatch) -> None:
    assert written(io.StringIO()) == "error: words\n"
    assert "\x1b[" in written(Terminal())


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_who_wants_no_colours_gets_none(plain_environment: pytest.MonkeyPatch, name: str, value: str) -> None:
    plain_environment.setenv(name, value)
    assert written(Terminal()) == "error: words\n"


def test_force_color_colours_a_pipe(plain_environment: pytest.MonkeyPatch) -> None:
    plain_environment.setenv("FORCE_COLOR", "1")
    assert "\x1b[" in written(io.StringIO())


def test_markup_in_a_key_is_only_text(plain_environment: pytest.MonkeyPatch) -> None:
    page = Page()
    page.add(("[bold]:smile: [/nope]", "title"))
    stream = Terminal()
    emit(page, stream)
    assert "[bold]:smile: [/nope]" in stream.getvalue()


@given(st.text(min_size=0, max_size=200), st.integers(10, 100))
def test_cut_keeps_both_ends(words: str, room: int) -> None:
    shown = cut(words, room)
    assert len(shown) <= room
    if len(words) > room:
        head, tail = shown.split("...", 1)[0], shown.rsplit("...", 1)[1]
        assert words.startswith(head)
        assert words.endswith(tail)
        assert head
        assert tail
    else:
        assert shown == words
