"""From an alignment to the fewest readable steps, and from a plan to the plan back."""

from __future__ import annotations

from ckptdoctor.planner.make import make_plan

__all__ = ["make_plan"]
