"""Every way in which names from files are shown, in one list: each gets hostile names in ``test_hostile_names.py``.

To add a format: a function from a diagnosis to its text, and one that raises AssertionError if anything of
a name acts as syntax. ``safe_lines`` is what every text format has to hold as well.
"""

from __future__ import annotations

import io
import json
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from ckptdoctor.diagnosis import Diagnosis, concise
from ckptdoctor.reports.expand import expand_page
from ckptdoctor.reports.finding import Options
from ckptdoctor.reports.inspect import inspect_page
from ckptdoctor.reports.page import emit
from ckptdoctor.reports.text import diagnosis_page

Render = Callable[[Diagnosis], str]
Check = Callable[[str, Diagnosis], None]


@dataclass(frozen=True)
class Renderer:
    render: Render
    check: Check


def safe_lines(text: str, found: Diagnosis | None = None) -> None:
    """No character that moves a cursor, hides text, changes its direction or cannot be encoded."""
    for char in set(text) - {"\n"}:
        kind = unicodedata.category(char)
        assert kind not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"), f"{char!r} in the output"
    text.encode()


def coloured(found: Diagnosis) -> str:
    """As a terminal gets it, without the colours that are ours."""
    import re
    from unittest import mock

    stream = io.StringIO()
    with mock.patch.dict("os.environ", {"FORCE_COLOR": "1"}):
        emit(diagnosis_page(found, Options(verbose=True)), stream)
    return re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())


def whole(text: str, found: Diagnosis) -> None:
    """JSON gives back exactly what was found, and nothing but ASCII."""
    assert text.isascii()
    assert json.loads(text) == json.loads(json.dumps(found.to_dict()))


def json_text(found: Diagnosis) -> str:
    from ckptdoctor.reports.json import write

    stream = io.StringIO()
    write(found.to_dict(), stream)
    return stream.getvalue()


def plan_text(found: Diagnosis) -> str:
    from ckptdoctor.plan import to_toml

    return to_toml(found.plan) if found.plan is not None else ""


def same_plan(text: str, found: Diagnosis) -> None:
    """The TOML reads back as the same plan; no name has become a table or a value."""
    import tomllib

    from ckptdoctor.plan import from_toml

    if found.plan is None:
        return
    safe_lines(text)
    assert from_toml(text) == found.plan
    assert set(tomllib.loads(text)) <= {
        "format",
        "source",
        "target",
        "step",
        "question",
        "result",
        "decision",
        "warning",
    }


RENDERERS: dict[str, Renderer] = {
    "text": Renderer(lambda d: diagnosis_page(d).plain(), safe_lines),
    "text, every line": Renderer(lambda d: diagnosis_page(d, Options(verbose=True)).plain(), safe_lines),
    "terminal": Renderer(coloured, safe_lines),
    "concise": Renderer(concise, safe_lines),
    "expanded": Renderer(lambda d: expand_page(d).plain(), safe_lines),
    "inspect": Renderer(lambda d: inspect_page(d.archive, Options(verbose=True)).plain(), safe_lines),
    "json": Renderer(json_text, whole),
    "toml": Renderer(plan_text, same_plan),
}
