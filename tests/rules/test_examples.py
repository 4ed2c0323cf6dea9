"""Every rule is documented and proves itself by its own examples."""

import re

import pytest

from ckptdoctor.errors import CkptDoctorError
from ckptdoctor.rules import Example, Rule, find_rule, rules
from tests.rules.build import example

SECTIONS = ("What it means", "Why it matters", "What to do")
GOOD = [(rule, e) for rule in rules() for e in rule.VALID]
BAD = [(rule, e) for rule in rules() for e in rule.INVALID]


def name(value: object) -> str:
    return value.name if isinstance(value, Rule) else ""


@pytest.mark.parametrize(("rule", "made"), GOOD, ids=name)
def test_a_valid_example_is_not_reported(rule: Rule, made: Example) -> None:
    assert rule.code not in [d.code for d in example(made).diagnostics]


@pytest.mark.parametrize(("rule", "made"), BAD, ids=name)
def test_an_invalid_example_is_reported_once(rule: Rule, made: Example) -> None:
    found = example(made).diagnostics
    assert [d.code for d in found].count(rule.code) == 1, [(d.code, d.title) for d in found]


@pytest.mark.parametrize(("rule", "made"), BAD, ids=name)
def test_an_error_says_what_to_do(rule: Rule, made: Example) -> None:
    for diagnostic in example(made).diagnostics:
        if diagnostic.severity == "error" and diagnostic.code[:4] not in ("CKD4",):
            assert diagnostic.fix or diagnostic.helps or diagnostic.code == "CKD307", diagnostic


@pytest.mark.parametrize("rule", rules(), ids=name)
def test_a_rule_has_examples_and_its_docstring_has_the_sections(rule: Rule) -> None:
    text = rule.explain()
    assert [text.index(f"\n{s}\n") for s in SECTIONS] == sorted(text.index(f"\n{s}\n") for s in SECTIONS)
    assert text.partition("\n\n")[0].endswith(".")
    assert rule.VALID
    elsewhere = rule.code in ("CKD207", "CKD302", "CKD306") or rule.code.startswith("CKD7")
    assert rule.INVALID or elsewhere, "see test_wording.py and tests/contract for those"


def test_codes_and_names_are_unique_and_well_formed() -> None:
    assert len({r.code for r in rules()}) == len({r.name for r in rules()}) == len(rules())
    assert all(re.fullmatch(r"CKD\d{3}", r.code) for r in rules())
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", r.name) for r in rules())


@pytest.mark.parametrize("text", ["CKD101", "ckd101", "wrapper-prefix", " Wrapper-Prefix "])
def test_a_rule_is_found_by_code_and_by_name(text: str) -> None:
    assert find_rule(text).code == "CKD101"


def test_an_unknown_rule_names_the_nearest() -> None:
    with pytest.raises(CkptDoctorError, match="did you mean wrapper-prefix"):
        find_rule("wraper-prefix")
