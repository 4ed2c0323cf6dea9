"""The text of ``ckptdoctor explain``: a rule's docstring, with its sections."""

from __future__ import annotations

from collections.abc import Sequence

from ckptdoctor.reports.page import Page
from ckptdoctor.rules import Rule


def explain_page(rule: Rule) -> Page:
    """Code, name, and the docstring; lines that are not indented are headings."""
    page = Page()
    page.add((f"{rule.code} {rule.name}", "title"), (f"  {rule.severity}", rule.severity))
    page.add("")
    first, *rest = rule.explain().replace("``", "`").splitlines()
    page.add(first)
    for line in rest:
        page.add((line, "" if line.startswith(" ") else "help"))
    return page


def list_page(rules: Sequence[Rule]) -> Page:
    """One line a rule."""
    page = Page()
    column = max(len(rule.name) for rule in rules)
    for rule in rules:
        sentence = " ".join(rule.explain().partition("\n\n")[0].replace("``", "`").split())
        page.add((rule.code, "title"), f"  {rule.name:{column}}  ", (sentence, "grey"))
    return page


def rule_dict(rule: Rule) -> dict[str, str]:
    """Plain data."""
    return {"code": rule.code, "name": rule.name, "severity": rule.severity, "text": rule.explain()}
