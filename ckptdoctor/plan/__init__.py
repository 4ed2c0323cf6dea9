"""Plans: what is to be done to a checkpoint so that it loads into a model, as data and as a reviewed file."""

from __future__ import annotations

from ckptdoctor.plan.expand import Expansion, expand
from ckptdoctor.plan.fills import Fill
from ckptdoctor.plan.model import Plan, Step
from ckptdoctor.plan.toml import from_toml, json_schema, to_toml

__all__ = ["Expansion", "Fill", "Plan", "Step", "expand", "from_toml", "json_schema", "to_toml"]
