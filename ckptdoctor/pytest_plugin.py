"""pytest plugin: a model's tree as a test.

    def test_contract(ckpt_contract):
        ckpt_contract.check(ResNet(), "resnet")

``pytest --ckpt-update`` writes the trees instead; it is refused when ``CI`` is set, as in every CI.
Nothing of ckptdoctor is imported until a test asks for the fixture.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch

    from ckptdoctor.contract import CheckReport


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--ckpt-update``."""
    group = parser.getgroup("ckptdoctor")
    group.addoption(
        "--ckpt-update", action="store_true", help="write the .tree files of the models that tests check"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to update where nobody would see it."""
    if config.getoption("--ckpt-update") and os.environ.get("CI"):
        raise pytest.UsageError(
            "--ckpt-update is for your own machine, and CI is set: a test that rewrites what it checks "
            "checks nothing. Run it there and commit the .tree files"
        )


@dataclass(frozen=True)
class Contract:
    """What the fixture gives: :meth:`check`."""

    folder: Path
    update: bool = False

    def check(self, model: torch.nn.Module, name: str) -> CheckReport:
        """Fail the test unless the model is what ``ckpt/NAME.tree`` says and takes every supported release.

        ``name`` is a model of ``[tool.ckptdoctor]``, or ``model.variant``. With ``--ckpt-update`` the tree is
        written first. Returns the report; its warnings are no failure.
        """
        __tracebackhide__ = True
        from ckptdoctor.contract import check_project
        from ckptdoctor.contract.build import Head
        from ckptdoctor.contract.units import open_project
        from ckptdoctor.contract.write import write_lock
        from ckptdoctor.errors import CkptDoctorError
        from ckptdoctor.targets import snapshot

        try:
            project = open_project(self.folder)
            units = project.choose(name)
            tree = snapshot(model)
            unit = next((u for u in units if u.name == name), None)
            if unit is None:
                names = " or ".join(f'"{u.name}"' for u in units)
                pytest.fail(f'"{name}" has variants; name one of them: {names}', pytrace=False)
            if self.update:
                write_lock(project, unit, tree)
            report = check_project(self.folder, given=[Head(unit, tree, "given")])
        except CkptDoctorError as error:
            pytest.fail(f"ckptdoctor could not check {name}: {error}", pytrace=False)
        if not report.ok:
            pytest.fail(failure_text(report), pytrace=False)
        return report


def failure_text(report: CheckReport) -> str:
    """The report, and how to take the model as it is."""
    from ckptdoctor.reports.check import check_page

    text = check_page(report).plain()
    if any(d.code == "CKD701" for d in report.diagnostics):
        text += "\n  meant: pytest --ckpt-update, then commit the .tree file"
    return text


@pytest.fixture(scope="session")
def ckpt_contract(pytestconfig: pytest.Config) -> Contract:
    """The project that the tests belong to; ``ckpt_contract.check(model, "name")``."""
    return Contract(pytestconfig.rootpath, bool(pytestconfig.getoption("--ckpt-update")))
