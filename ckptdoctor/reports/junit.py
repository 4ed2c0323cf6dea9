"""JUnit XML, which nearly every CI shows as test results: a case for each release, a suite for each model."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree as ET

from ckptdoctor.contract.report import CheckReport, Row
from ckptdoctor.diagnostics import Diagnostic
from ckptdoctor.keys import printable
from ckptdoctor.reports.check_words import release_words
from ckptdoctor.reports.places import message


def check_text(report: CheckReport) -> str:
    """Releases that do not load are failures, what could not be checked is an error."""
    root = ET.Element("testsuites", name="ckptdoctor")
    for unit in dict.fromkeys([*report.models, *(row.unit for row in report.rows)]):
        _suite(root, unit, [r for r in report.rows if r.unit == unit])
    _findings(root, report.diagnostics)
    for problem in report.problems:
        case = ET.SubElement(
            _named(root, "could not check"), "testcase", name=_text(problem), classname="ckptdoctor"
        )
        ET.SubElement(case, "error", message=_text(problem)).text = _text(problem)
    _count(root)
    ET.indent(root)
    return "<?xml version='1.0' encoding='utf-8'?>\n" + ET.tostring(root, encoding="unicode") + "\n"


def _suite(root: ET.Element, unit: str, rows: Sequence[Row]) -> None:
    suite = _named(root, unit)
    for row in rows:
        case = ET.SubElement(
            suite, "testcase", name=_text(f"{release_words(row)} {row.direction}"), classname=_text(unit)
        )
        if not row.ok:
            failure = ET.SubElement(
                case, "failure", message=_text(f"{row.verdict}: {row.what}"), type=row.verdict
            )
            failure.text = _text(f"{row.verdict}: {row.what}")


def _findings(root: ET.Element, diagnostics: Sequence[Diagnostic]) -> None:
    if not diagnostics:
        return
    suite = _named(root, "findings")
    for diagnostic in diagnostics:
        name = f"{diagnostic.code} {diagnostic.name} {diagnostic.place}"
        case = ET.SubElement(suite, "testcase", name=_text(name), classname="ckptdoctor")
        words = "\n".join(_text(line) for line in message(diagnostic).splitlines())
        if diagnostic.severity == "error":
            ET.SubElement(case, "failure", message=_text(diagnostic.title), type=diagnostic.code).text = words
        else:
            ET.SubElement(case, "system-out").text = words


def _named(root: ET.Element, name: str) -> ET.Element:
    found = next((s for s in root if s.get("name") == _text(name)), None)
    return found if found is not None else ET.SubElement(root, "testsuite", name=_text(name))


def _count(root: ET.Element) -> None:
    for element in (*root, root):
        for kind, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error")):
            element.set(kind, str(sum(1 for _ in element.iter(tag))))


def _text(text: str) -> str:
    """What XML 1.0 can hold: everything printable is; line breaks and the rest are escaped in words."""
    return printable(text)
