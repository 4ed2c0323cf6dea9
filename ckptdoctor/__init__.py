"""Static compatibility checker and auto-repair engine for PyTorch checkpoints.

Reading and reporting need no torch, and nothing in a checkpoint is ever executed:

- :func:`inspect` reads what a checkpoint holds, :func:`snapshot` what a model expects;
- :func:`diagnose` says whether they fit, why not, and what repairs it;
- :func:`plan` and :func:`apply` make that repair reviewable and repeatable;
- :func:`auto_load` does all of it and proves the result, or leaves the model untouched;
- :func:`diff` compares two checkpoints or models;
- :func:`save_checkpoint` and :func:`auto_resume` save and resume a training, optimizer state by name.
- :func:`check` holds a project's models against published checkpoints before a merge, and
  :func:`register_migrations` lets ``load_state_dict`` take them afterwards.

Everything is imported on first use, so ``import ckptdoctor`` costs milliseconds.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "Archive",
    "CheckReport",
    "CkptDoctorError",
    "Diagnosis",
    "Diagnostic",
    "ParamTree",
    "Plan",
    "Receipt",
    "ResumeReceipt",
    "Saving",
    "__version__",
    "apply",
    "auto_load",
    "auto_resume",
    "check",
    "diagnose",
    "diff",
    "inspect",
    "plan",
    "register_migrations",
    "save_checkpoint",
    "snapshot",
]

# Public name -> the module that defines it.
_HOMES = {
    "Archive": "ckptdoctor.formats.base",
    "CheckReport": "ckptdoctor.contract.report",
    "CkptDoctorError": "ckptdoctor.errors",
    "Diagnosis": "ckptdoctor.diagnosis",
    "Diagnostic": "ckptdoctor.diagnostics",
    "ParamTree": "ckptdoctor.trees",
    "Plan": "ckptdoctor.plan",
    "Receipt": "ckptdoctor.receipt",
    "ResumeReceipt": "ckptdoctor.training.receipt",
    "Saving": "ckptdoctor.training.background",
    "auto_resume": "ckptdoctor.training.resume",
    "inspect": "ckptdoctor.inspecting",
    "register_migrations": "ckptdoctor.contract.runtime",
    "save_checkpoint": "ckptdoctor.training.save",
    **dict.fromkeys(
        ("apply", "auto_load", "check", "diagnose", "diff", "plan", "snapshot"), "ckptdoctor.api"
    ),
}

if TYPE_CHECKING:
    from ckptdoctor.api import apply, auto_load, check, diagnose, diff, plan, snapshot
    from ckptdoctor.contract.report import CheckReport
    from ckptdoctor.contract.runtime import register_migrations
    from ckptdoctor.diagnosis import Diagnosis
    from ckptdoctor.diagnostics import Diagnostic
    from ckptdoctor.errors import CkptDoctorError
    from ckptdoctor.formats.base import Archive
    from ckptdoctor.inspecting import inspect
    from ckptdoctor.plan import Plan
    from ckptdoctor.receipt import Receipt
    from ckptdoctor.training.background import Saving
    from ckptdoctor.training.receipt import ResumeReceipt
    from ckptdoctor.training.resume import auto_resume
    from ckptdoctor.training.save import save_checkpoint
    from ckptdoctor.trees import ParamTree


def _load(name: str) -> Any:
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = _load(name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


class _Package(ModuleType):
    """Keeps ``ckptdoctor.plan`` and ``ckptdoctor.apply`` the functions.

    The packages of the same names are set as attributes by the import system once something inside
    imports them; a property of the module's class stands before that.
    """

    @property
    def plan(self) -> Any:
        return _load("plan")

    @plan.setter
    def plan(self, module: Any) -> None:
        """The import system's assignment; the package stays reachable by ``from ckptdoctor.plan import``."""

    @property
    def apply(self) -> Any:
        return _load("apply")

    @apply.setter
    def apply(self, module: Any) -> None:
        """As above."""


sys.modules[__name__].__class__ = _Package
