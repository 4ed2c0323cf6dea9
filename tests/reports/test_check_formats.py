"""One report in every form: valid where a schema exists, complete, and nothing in it acts."""

from __future__ import annotations

import gzip
import html
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree as ET

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptdoctor.cli.contract import CHECK_FORMATS
from ckptdoctor.contract.report import CheckReport, Proposal, Row
from ckptdoctor.diagnostics import Diagnostic, Fix, Help, Line
from ckptdoctor.reports import github, markdown, sarif
from ckptdoctor.reports.check import write_report, write_step_summary
from ckptdoctor.reports.places import file_and_line, fingerprint

SCHEMA = json.loads(
    gzip.decompress((Path(__file__).parents[2] / "fixtures/schemas/sarif-2.1.0-rtm.5.json.gz").read_bytes())
)


def finding(
    title: str = "checkpoints of `net` 1.0 need a migration",
    code: str = "CKD702",
    severity: Any = "error",
    place: str = "ckpt/net.tree:4",
    **more: Any,
) -> Diagnostic:
    return Diagnostic(code, "missing-migration", severity, title, place, **more)


FULL = finding(
    evidence=(Line("layer{i}.**", "-"), Line("stages.{i-1}.**", "+")),
    why="names agree",
    notes=("one note",),
    fix=Fix("commit ckpt/migrations/net/0001-stages.toml", "safe"),
    helps=(Help("ckptdoctor migrate --write", "writes it"),),
    keys=("stages.0.weight",),
)
REPORT = CheckReport(
    rows=(
        Row("net", "1.0", "backward", "migration missing", "layer{i}.** -> stages.{i-1}.** (312 keys)"),
        Row("net", "0.9", "backward", "breaking", "`fc` has 1000 rows"),
        Row("vit", "1.2", "forward", "compatible"),
    ),
    diagnostics=(
        FULL,
        finding("`fc` has 1000 rows", "CKD703", place=""),
        finding("tolerated", "CKD707", "warning"),
    ),
    models={"net": "built", "vit": "unchanged"},
    proposals=(Proposal("net", "ckpt/migrations/net/0001-stages.toml", 'format = 1\nwhy = "```"\n'),),
)
FINE = CheckReport(rows=(Row("net", "1.0", "backward", "compatible"),), models={"net": "built"})
BLIND = replace(FINE, problems=("net: model.py:3: SyntaxError\n  | x = = 1",))
REPORTS = [REPORT, FINE, BLIND, CheckReport()]


def written(report: CheckReport, form: str) -> str:
    stream = io.StringIO()
    write_report(report, form, stream)
    return stream.getvalue()


@pytest.mark.parametrize("form", CHECK_FORMATS)
@pytest.mark.parametrize("report", REPORTS, ids=["findings", "fine", "blind", "empty"])
def test_every_form_tells_what_was_found(form: str, report: CheckReport) -> None:
    text = html.unescape(written(report, form))
    assert text.endswith("\n")
    for row in report.rows if form in ("text", "json", "markdown", "junit") else ():
        assert row.unit in text and row.release in text
    for diagnostic in report.diagnostics:
        assert diagnostic.code in text
    if report.problems:
        assert "SyntaxError" in text
    if report is FINE and form in ("text", "concise", "github", "markdown"):
        assert "1 model against 1 release" in text


def test_exit_codes() -> None:
    assert [r.exit_code for r in REPORTS] == [1, 0, 2, 0]
    assert replace(REPORT, problems=("x",)).exit_code == 2, "could not check is never mixed with findings"


@pytest.mark.parametrize("report", REPORTS)
def test_sarif_is_valid(report: CheckReport) -> None:
    log = json.loads(written(report, "sarif"))
    jsonschema.Draft4Validator(SCHEMA).validate(log)
    (run,) = log["runs"]
    assert len(run["results"]) == len(report.diagnostics)
    listed = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert all(listed[r["ruleIndex"]] == r["ruleId"] for r in run["results"])
    assert run["invocations"][0]["executionSuccessful"] is (not report.problems)


def test_sarif_places_are_lines_of_committed_files() -> None:
    first, second, _ = json.loads(written(REPORT, "sarif"))["runs"][0]["results"]
    place = first["locations"][0]["physicalLocation"]
    assert (place["artifactLocation"]["uri"], place["region"]["startLine"]) == ("ckpt/net.tree", 4)
    assert "locations" not in second, "no place is not a wrong place"


def test_fingerprints_outlive_moved_lines_and_other_layers() -> None:
    here = finding(keys=("layers.3.weight", "layers.4.weight"))
    moved = replace(here, place="ckpt/net.tree:9", keys=("layers.7.weight",), title=here.title)
    assert fingerprint(here) == fingerprint(moved)
    assert fingerprint(here) != fingerprint(replace(here, keys=("layers.3.bias",)))
    assert fingerprint(here) != fingerprint(replace(here, place="ckpt/other.tree:4"))


def test_junit_counts_and_kinds() -> None:
    root = ET.fromstring(written(REPORT, "junit"))
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("6", "4", "0")
    cases = {c.get("name"): c for c in root.iter("testcase")}
    assert cases["1.0 backward"].find("failure") is not None
    assert cases["1.2 (new checkpoints) forward"].find("failure") is None
    assert ET.fromstring(written(BLIND, "junit")).get("errors") == "1"


def test_gitlab_has_the_documented_fields() -> None:
    issues = json.loads(written(REPORT, "gitlab"))
    assert [i["severity"] for i in issues] == ["major", "major", "minor"]
    assert len({i["fingerprint"] for i in issues}) == 3
    assert issues[0]["location"] == {"path": "ckpt/net.tree", "lines": {"begin": 4}}
    assert json.loads(written(BLIND, "gitlab"))[0]["severity"] == "blocker"
    twice = replace(REPORT, diagnostics=(FULL, FULL))
    assert len({i["fingerprint"] for i in json.loads(written(twice, "gitlab"))}) == 2


def test_github_stays_within_what_a_step_shows() -> None:
    many = tuple(finding(f"number {n}") for n in range(30)) + tuple(
        finding(f"careful {n}", severity="warning") for n in range(11)
    )
    lines = written(replace(REPORT, diagnostics=many), "github").splitlines()
    errors = [line for line in lines if line.startswith("::error ")]
    warnings = [line for line in lines if line.startswith("::warning ")]
    assert len(errors) == len(warnings) == 10
    assert "21 more errors are not shown here" in errors[-1]
    assert "2 more warnings" in warnings[-1]
    assert sum("number" in line and not line.startswith("::") for line in lines) == 30, "the log has all"


def test_an_annotation_points_to_the_tree_line() -> None:
    line = github.annotation(FULL)
    assert line.startswith("::error file=ckpt/net.tree,line=4,title=CKD702 missing-migration::checkpoints of")
    assert "%0Ahelp: ckptdoctor migrate --write" in line


def test_the_step_summary_is_appended_and_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "summary.md"
    file.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(file))
    write_step_summary(REPORT)
    text = file.read_text()
    assert text.startswith("before\n### ckptdoctor: 1 needs a migration, 1 breaking\n")
    assert "````toml\n" in text, "a migration with a fence in it gets a longer one"
    huge = replace(REPORT, diagnostics=tuple(finding(f"{'x' * 2000} {n}") for n in range(2000)))
    assert len(markdown.check_text(huge).encode()) < 1024 * 1024
    assert re.search(r"and 1,?\d+ more parts, which do not fit", markdown.check_text(huge))
    monkeypatch.delenv("GITHUB_STEP_SUMMARY")
    write_step_summary(REPORT)
    assert file.read_text() == text


@pytest.mark.parametrize(
    ("place", "wanted"),
    [
        ("a/b.tree:7", ("a/b.tree", 7)),
        ("m.py", ("m.py", 1)),
        ("", ("", 1)),
        ("f.pth#a:b", ("f.pth", 1)),
        ("x:0", ("x:0", 1)),
    ],
)
def test_places(place: str, wanted: tuple[str, int]) -> None:
    assert file_and_line(place) == wanted


NASTY = st.lists(
    st.sampled_from(
        [
            *"ab`*_|<>&\"'[]()!#@~:,%$\\ \n\r\t\x00\x1b\u202e\u2028é",
            "::error::", "::set-output name=x::y", "##[add-mask]z", "```", "~~~", "<script>", "]]>", "<!--", "|---|",
            "\n::stop-commands::x\n", "@team", "#1", "![i](http://x)", "</code>", "\ud800", "\uffff",
        ]
    ),
    max_size=12,
).map("".join)  # fmt: skip


def hostile(text: str) -> CheckReport:
    """The text wherever a key or a file's name can stand."""
    from ckptdoctor.keys import printable

    shown = printable(text)  # titles and evidence are made printable by whoever words them
    diagnostic = Diagnostic(
        "CKD703", "breaking-change", "error", f"`{shown}` is gone", f"{text}.tree:3", text,
        (Line(shown, "-"), Line(shown)), shown, (shown,), Fix(shown, "safe"), (Help(shown, shown),), (text,),
    )  # fmt: skip
    row = Row("net", shown, "backward", "breaking", shown)
    return CheckReport(
        (row,), (diagnostic,), (text,), {"net": "built"}, (Proposal("net", shown, f"# {shown}\n"),)
    )


@given(NASTY)
@settings(max_examples=150)
def test_law_no_text_acts_in_any_form(text: str) -> None:
    report = hostile(text)
    for form in CHECK_FORMATS:
        out = written(report, form)
        assert "\x1b" not in out and "\u202e" not in out and "\x00" not in out, form
        out.encode("utf-8")
    _check_github(written(report, "github"))
    _check_markdown(written(report, "markdown"))
    jsonschema.Draft4Validator(SCHEMA).validate(json.loads(written(report, "sarif")))
    root = ET.fromstring(written(report, "junit"))
    assert {e.tag for e in root.iter()} <= {
        *("testsuites", "testsuite", "testcase", "failure", "error", "system-out")
    }
    json.loads(written(report, "json"))
    json.loads(written(report, "gitlab"))


def _check_github(out: str) -> None:
    """As the runner reads it: ``::name props::`` in front of a line (blanks may stand before), ``##[`` anywhere."""
    for line in out.split("\n"):
        assert "##[" not in line
        if line.lstrip().startswith("::"):
            found = re.fullmatch(r"::(error|warning|notice) ((?:[a-z]+=[^,:\r\n]*,?)*)::([^\r\n]*)", line)
            assert found, line
            assert set(re.findall(r"([a-z]+)=", re.sub(r"=[^,]*", "=", found[2]))) <= {
                "file",
                "line",
                "title",
            }
    assert out.count("::error ") >= 1


def _check_markdown(out: str) -> None:
    """Outside of fences only our own tags are left, and every line is one that we wrote."""
    outside, fence = [], ""
    for line in out.split("\n"):
        run = re.match(r"`{3,}", line)
        if fence:
            if line == fence:
                fence = ""
            continue
        if run:
            fence = run[0]
            continue
        outside.append(line)
    assert not fence, "every fence is closed by its own end"
    tags = set(re.findall(r"<[^>]*>", "\n".join(outside)))
    assert tags <= {"<code>", "</code>", "<details>", "</details>", "<summary>", "</summary>"}
    text = re.sub(r"<code>[^<]*</code>", "", "\n".join(outside))
    assert not re.search(r"[`\[\]~@]", text.replace("### ckptdoctor", "")), text


@given(NASTY)
@settings(max_examples=60)
def test_law_a_uri_gives_the_file_back(text: str) -> None:
    from ckptdoctor.reports.places import relative_uri

    name = text.replace("\\", "/").replace("\ud800", "")
    uri = relative_uri(name)
    assert re.fullmatch(r"[A-Za-z0-9/._~%-]*", uri)
    assert unquote(uri) == name.removeprefix("./")


def test_rules_of_a_log_are_those_that_it_uses() -> None:
    assert [r["id"] for r in sarif.log([FULL])["runs"][0]["tool"]["driver"]["rules"]] == ["CKD702"]
