"""What random networks have found, once and for all."""

from pathlib import Path

import pytest

from ckptdoctor.testing import judge
from tests.trust.regressions import CASES


@pytest.mark.parametrize("name", CASES)
def test_never_silently_wrong_again(name: str, tmp_path: Path) -> None:
    outcome = judge(*CASES[name], tmp_path)
    assert not outcome.problems
    assert outcome.kind in ("loaded", "asked"), outcome.words
