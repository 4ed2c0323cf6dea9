"""One line a finding, for editors, logs and eyes in a hurry."""

from __future__ import annotations

from typing import TextIO

from ckptdoctor.diagnosis import Diagnosis, concise


def render(diagnosis: Diagnosis, stream: TextIO) -> None:
    """``r50.pth: CKD101 [*] every key in the checkpoint starts with `module.```, then the verdict."""
    stream.write(concise(diagnosis) + "\n")
