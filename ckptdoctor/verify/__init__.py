"""The independent check of what ``apply`` did: re-read, replay, compare bits, judge casts by values."""

from __future__ import annotations

from ckptdoctor.verify.casting import classify
from ckptdoctor.verify.replay import verify_model, verify_values

__all__ = ["classify", "verify_model", "verify_values"]
