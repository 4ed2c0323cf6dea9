"""The words that plans are written in: how a tensor of the model is made from tensors of the checkpoint.

A new op is one class in one file of this package, decorated with :func:`register`; the files are found by
themselves, and the law tests run its ``EXAMPLES``.

>>> chain = parse_chain(["each:transpose(0,1)", "concat(0)"])
>>> chain.out_shape([(48, 16), (48, 32)])
(48, 48)
"""

from __future__ import annotations

import importlib
import pkgutil

from ckptdoctor.ops.base import OPS, Effect, Join, Op, Shape, Unary, register
from ckptdoctor.ops.chain import Chain, parse_chain
from ckptdoctor.ops.partition import covers, rejoin
from ckptdoctor.ops.rows import read_rows

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "OPS",
    "Chain",
    "Effect",
    "Join",
    "Op",
    "Shape",
    "Unary",
    "covers",
    "parse_chain",
    "read_rows",
    "register",
    "rejoin",
]
