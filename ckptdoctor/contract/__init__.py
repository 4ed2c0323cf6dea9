"""The contract with checkpoints that people have: locks, releases, migrations, and their check."""

from __future__ import annotations

from ckptdoctor.contract.check import check_project
from ckptdoctor.contract.report import CheckReport, Proposal, Row

__all__ = ["CheckReport", "Proposal", "Row", "check_project"]
