"""Running a plan: on a live model, or to make the tensors of a new file.

Nothing here judges whether the result is right; ``ckptdoctor.verify`` does, and ``ckptdoctor.loading``
puts both into one transaction.
"""

from __future__ import annotations

from ckptdoctor.apply.file import Initial, file_contents
from ckptdoctor.apply.model import run_on_model
from ckptdoctor.apply.staging import Expansion, Reader

__all__ = ["Expansion", "Initial", "Reader", "file_contents", "run_on_model"]
