"""Every way in which names from files are shown, in one list: each gets hostile names in ``test_hostile_names.py``.

To add a format: a function from a diagnosis to its text, and one that raises AssertionError if anything of
a name acts as syntax. ``safe_lines`` is what every text format has to hold as well.
"""

from __future__ import annotations

import io
import json
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ckptdoctor.contract.report import CheckReport, Proposal, Row
from ckptdoctor.diagnosis import Diagnosis, concise
from ckptdoctor.keys import printable
from ckptdoctor.reports.expand import expand_page
from ckptdoctor.reports.finding import Options
from ckptdoctor.reports.inspect import inspect_page
from ckptdoctor.reports.page import emit
from ckptdoctor.reports.text import diagnosis_page
from tests.trust.programs import exported, inert_program

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


# --- reports of a check, as CI systems read them ---------------------------------------------------


def checked(found: Diagnosis) -> CheckReport:
    """The findings of a diagnosis as those of ``ckptdoctor check``; hostile names wherever a report has a place."""
    names = [*found.target.tree.specs][:2]
    rows = tuple(Row("net", printable(n)[:80], "backward", "breaking", printable(n)) for n in names)
    text = plan_text(found)
    made = (Proposal("net", f"ckpt/{printable(names[0])[:80]}.toml", text),) if text else ()
    return CheckReport(rows, tuple(found.diagnostics), tuple(names), {"net": "built"}, made)


def check_in(form: str) -> Render:
    def render(found: Diagnosis) -> str:
        from ckptdoctor.reports.check import write_report

        stream = io.StringIO()
        write_report(checked(found), form, stream)
        return stream.getvalue()

    return render


def parsed_json(text: str) -> Any:
    """Nothing but ASCII, and no text in it that acts where a viewer shows it."""
    assert text.isascii()
    data = json.loads(text)
    for words in texts(data):
        safe_lines(words)
    return data


def texts(data: Any) -> Iterator[str]:
    """All texts of plain data, names of fields too."""
    if isinstance(data, str):
        yield data
    elif isinstance(data, dict):
        for key, value in data.items():
            yield from (key, *texts(value))
    elif isinstance(data, list):
        for value in data:
            yield from texts(value)


def sarif_results(text: str, found: Diagnosis) -> None:
    """One result a finding, its words, its rule; no name has become a field."""
    from ckptdoctor.reports.places import message

    (run,) = parsed_json(text)["runs"]
    assert [r["message"]["text"] for r in run["results"]] == [message(d) for d in found.diagnostics]
    assert [r["ruleId"] for r in run["results"]] == [d.code for d in found.diagnostics]
    fields = {"ruleId", "level", "message", "partialFingerprints", "ruleIndex", "locations"}
    assert all(set(r) <= fields for r in run["results"])


def gitlab_issues(text: str, found: Diagnosis) -> None:
    """One issue a finding and a problem."""
    rows = parsed_json(text)
    assert [r["check_name"].split()[0] for r in rows[: len(found.diagnostics)]] == [
        d.code for d in found.diagnostics
    ]
    fields = {"description", "check_name", "fingerprint", "severity", "location"}
    assert all(set(r) == fields for r in rows)


def junit_cases(text: str, found: Diagnosis) -> None:
    """The XML has our elements only, as many as there are findings, with their words."""
    from xml.etree import ElementTree as ET

    safe_lines(text)
    root = ET.fromstring(text)
    assert {e.tag for e in root.iter()} <= {
        *("testsuites", "testsuite", "testcase", "failure", "error", "system-out")
    }
    report = checked(found)
    due = len(report.rows) + len(report.diagnostics) + len(report.problems)
    assert len(list(root.iter("testcase"))) == due
    shown = {c.get("message") for c in root.iter("failure")}
    assert {printable(d.title) for d in found.diagnostics if d.severity == "error"} <= shown


def github_commands(text: str, found: Diagnosis) -> None:
    """The runner finds our commands only: one a finding or problem, with our properties."""
    safe_lines(text)
    assert "##[" not in text
    ours = [line for line in text.split("\n") if line.lstrip().startswith("::")]
    for line in ours:
        match = re.fullmatch(r"::(error|warning|notice) ((?:(?:file|line|title)=[^,:]*,?)*)::(.*)", line)
        assert match, line
    assert len(ours) <= len(found.diagnostics) + len(checked(found).problems)


TAGS = {
    *[
        "h3",
        "p",
        "ul",
        "ol",
        "li",
        "strong",
        "code",
        "pre",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "details",
        "summary",
    ]
}


def markdown_page(text: str, found: Diagnosis) -> None:
    """Rendered to HTML by a real parser there are our elements only: no link, no picture, no script."""
    from html.parser import HTMLParser

    from markdown_it import MarkdownIt

    safe_lines(text)

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert tag in TAGS, f"<{tag}> in the page"
            assert all(k == "class" and v in ("language-diff", "language-toml") for k, v in attrs), attrs

    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    Tags().feed(parser.render(text))
    assert "@" not in re.sub(r"(?ms)^(`{3,})\w*\n.*?^\1$", "", text), "a mention of somebody"


# --- files that are committed, and programs ---------------------------------------------------------


def tree_text(found: Diagnosis) -> str:
    from ckptdoctor.targets.treefile import write_tree

    return write_tree(found.target.tree)


def same_tree(text: str, found: Diagnosis) -> None:
    """A ``.tree`` file reads back as the same tree, one line a tensor."""
    from ckptdoctor.targets.treefile import read_tree

    safe_lines(text)
    assert read_tree(text, "net.tree").digest == found.target.tree.digest


def migration_text(found: Diagnosis) -> str:
    from ckptdoctor.contract.migration import Migration, write_migration

    if found.plan is None or found.source is None:
        return ""
    return write_migration(
        Migration("0001-x.toml", 1, "net", "", found.plan, found.source, found.target.tree)
    )


def same_migration(text: str, found: Diagnosis) -> None:
    """A migration reads back as the same plan and trees."""
    from ckptdoctor.contract.migration import read_migration

    if text:
        safe_lines(text)
        again = read_migration(text, "0001-x.toml")
        assert again.plan == found.plan
        assert again.target.digest == found.target.tree.digest


def traced(found: Diagnosis) -> str:
    """What ``--trace`` prints."""
    import ckptdoctor
    from ckptdoctor.align.reporter import TextReporter
    from ckptdoctor.reports.trace import write_trace

    reporter, stream = TextReporter(), io.StringIO()
    ckptdoctor.diagnose(found.target.tree, found.archive.path, reporter=reporter)
    write_trace(reporter, stream)
    return stream.getvalue()


def compared(found: Diagnosis) -> str:
    """``ckptdoctor diff`` of the file's tree and the model's."""
    from ckptdoctor.reports.diff import diff_page
    from ckptdoctor.treediff import TreeDiff

    source = found.source or found.target.tree
    return diff_page(TreeDiff("a", "b", source, found.target.tree), Options(verbose=True)).plain()


def linted(found: Diagnosis) -> str:
    """``ckptdoctor lint``."""
    from dataclasses import replace

    from ckptdoctor.reports.lint import lint_page
    from ckptdoctor.training.lint import lint

    archive = replace(found.archive, diagnostics=lint(found.archive, deep=True))
    return lint_page(archive, Options(verbose=True)).plain()


def inspected(found: Diagnosis) -> str:
    from ckptdoctor.reports.contents import inspect_dict
    from ckptdoctor.reports.json import write

    stream = io.StringIO()
    write(inspect_dict(found.archive), stream)
    return stream.getvalue()


def names_kept(text: str, found: Diagnosis) -> None:
    """JSON is data for programs: names stay what they are, and are escaped."""
    assert text.isascii()
    words = set(texts(json.loads(text)))
    assert all(any(k == w or k in w for w in words) for s in found.archive.state_dicts for k in s.tree.specs)


def receipt_text(found: Diagnosis) -> str:
    """What a repair says it did."""
    import tempfile
    from pathlib import Path

    from ckptdoctor.api import write_diagnosed
    from ckptdoctor.errors import CkptDoctorError

    if found.verdict not in ("compatible", "repairable"):
        return ""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return str(write_diagnosed(found, Path(folder) / "out.pth"))
        except CkptDoctorError as error:
            return str(error)


RENDERERS: dict[str, Renderer] = {
    "text": Renderer(lambda d: diagnosis_page(d).plain(), safe_lines),
    "text, every line": Renderer(lambda d: diagnosis_page(d, Options(verbose=True)).plain(), safe_lines),
    "terminal": Renderer(coloured, safe_lines),
    "concise": Renderer(concise, safe_lines),
    "expanded": Renderer(lambda d: expand_page(d).plain(), safe_lines),
    "inspect": Renderer(lambda d: inspect_page(d.archive, Options(verbose=True)).plain(), safe_lines),
    "json": Renderer(json_text, whole),
    "toml": Renderer(plan_text, same_plan),
    "check": Renderer(check_in("text"), safe_lines),
    "check, concise": Renderer(check_in("concise"), safe_lines),
    "check, json": Renderer(check_in("json"), lambda text, found: json.loads(text)),
    "check, sarif": Renderer(check_in("sarif"), sarif_results),
    "check, gitlab": Renderer(check_in("gitlab"), gitlab_issues),
    "check, junit": Renderer(check_in("junit"), junit_cases),
    "check, github": Renderer(check_in("github"), github_commands),
    "check, markdown": Renderer(check_in("markdown"), markdown_page),
    "lock": Renderer(tree_text, same_tree),
    "migration": Renderer(migration_text, same_migration),
    "python": Renderer(exported("python"), inert_program),
    "hook": Renderer(exported("hook"), inert_program),
    "mmengine": Renderer(exported("mmengine"), inert_program),
    "transformers": Renderer(exported("transformers"), inert_program),
    "trace": Renderer(traced, safe_lines),
    "diff": Renderer(compared, safe_lines),
    "lint": Renderer(linted, safe_lines),
    "inspect, json": Renderer(inspected, names_kept),
    "receipt": Renderer(receipt_text, safe_lines),
}
