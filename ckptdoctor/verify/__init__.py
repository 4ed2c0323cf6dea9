"""The independent check of what ``apply`` did: re-read, replay, compare bits, judge casts by values."""

from __future__ import annotations

from ckptdoctor.verify.casting import classify
from ckptdoctor.verify.file import verify_file
from ckptdoctor.verify.model import verify_model

__all__ = ["classify", "verify_file", "verify_model"]
