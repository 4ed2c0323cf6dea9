"""Rules narrate: each words one kind of finding of a finished case. They decide nothing.

A new rule is one class in a module of this package; it is found by itself.
"""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module

from ckptdoctor.diagnostics import Diagnostic
from ckptdoctor.errors import CkptDoctorError
from ckptdoctor.rules.base import Case, Example, Rule

__all__ = ["Case", "Example", "Rule", "find_rule", "narrate", "rules"]

_ORDER = {"error": 0, "warning": 1, "note": 2}


@cache
def rules() -> tuple[Rule, ...]:
    """One instance of every rule, by code. Two rules with one code or name are a mistake."""
    found: dict[str, Rule] = {}
    names: set[str] = set()
    for info in sorted(pkgutil.iter_modules(__path__), key=lambda i: i.name):
        module = import_module(f"{__name__}.{info.name}")
        for cls in vars(module).values():
            if not _is_rule(cls, module.__name__):
                continue
            if cls.code in found or cls.name in names:
                raise CkptDoctorError(f"two rules are called {cls.code} {cls.name}")
            found[cls.code] = cls()
            names.add(cls.name)
    return tuple(found[code] for code in sorted(found))


def _is_rule(cls: object, module: str) -> bool:
    return (
        isinstance(cls, type) and issubclass(cls, Rule) and cls.__module__ == module and hasattr(cls, "code")
    )


def find_rule(text: str) -> Rule:
    """The rule with this code or name; raises :class:`CkptDoctorError` naming the nearest ones."""
    wanted = text.strip()
    for rule in rules():
        if wanted.upper() == rule.code or wanted.lower() == rule.name:
            return rule
    from difflib import get_close_matches

    from ckptdoctor.keys import printable

    names = [n for rule in rules() for n in (rule.code, rule.name)]
    near = get_close_matches(wanted, names, 3, 0.5)
    known = (
        f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(r.code for r in rules())}"
    )
    raise CkptDoctorError(f"there is no rule `{printable(wanted)}`; {known}")


def narrate(case: Case) -> tuple[Diagnostic, ...]:
    """All findings of a case: errors first, then warnings and notes, each by code."""
    found = [d for rule in rules() for d in rule.check(case)]
    known = {rule.code for rule in rules()}
    found += [d for d in case.archive.diagnostics if d.code not in known]
    return tuple(sorted(found, key=lambda d: (_ORDER[d.severity], d.code)))
