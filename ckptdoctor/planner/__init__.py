"""From an alignment to the fewest readable steps, and from a plan to the plan back."""

from __future__ import annotations

from ckptdoctor.planner.make import make_expanded, make_plan
from ckptdoctor.planner.reverse import reverse

__all__ = ["make_expanded", "make_plan", "reverse"]
