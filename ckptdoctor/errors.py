"""The exception tree. An error holds data (diagnostics); front ends word it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckptdoctor.diagnostics import Diagnostic


class CkptDoctorError(Exception):
    """Base of every error that this package raises on purpose.

    ``diagnostics`` holds everything that was found, so that several problems are one error.
    """

    def __init__(self, message: str, diagnostics: Sequence[Diagnostic] = ()) -> None:
        super().__init__(message)
        self.diagnostics: tuple[Diagnostic, ...] = tuple(diagnostics)


class ReadError(CkptDoctorError):
    """A file could not be read as a checkpoint. The message names the file and what to do."""


class UnknownFormatError(ReadError):
    """The first bytes are those of something else (an HTML page, a git-lfs pointer, ...)."""


class CorruptCheckpointError(ReadError):
    """The file is of a known format but damaged: truncated, lying sizes, views outside storages."""


class TargetError(CkptDoctorError):
    """The model could not be built or found."""


class DecisionError(CkptDoctorError):
    """A decision (``--reinit``, ``--rename`` ...) is malformed or fits nothing."""


class PlanError(CkptDoctorError):
    """No plan can be made, or a plan cannot be read."""


class UndecidedError(PlanError):
    """A person has to decide; the message names the questions and the flags that answer them."""


class IncompatibleError(PlanError):
    """The checkpoint does not belong to this model; no repair is offered."""


class StalePlanError(PlanError):
    """The plan was made for other inputs (the tree digests differ)."""


class ApplyError(CkptDoctorError, RuntimeError):
    """Running the plan failed; the model and the output path are as before.

    Also a ``RuntimeError``, so that code written around ``load_state_dict`` keeps working.
    """


class VerifyError(ApplyError):
    """The independent check after loading found a difference; everything was rolled back."""


class ProbeError(VerifyError):
    """The model's outputs are not those that a probe expects; everything was rolled back."""


class SettingsError(CkptDoctorError):
    """``[tool.ckptdoctor]`` is wrong; the message names the line."""


class ContractError(CkptDoctorError):
    """A file of the contract (a lock, a release, a migration) cannot be read or written, or git cannot."""
