"""Keys as text: segments, order, exact folding, globs, and invertible rename rules."""

from __future__ import annotations

from ckptdoctor.keys.covering import cover
from ckptdoctor.keys.folding import Fold, fold, unfold
from ckptdoctor.keys.globs import has_wildcards, matches, select, select_all
from ckptdoctor.keys.grammar import PatternError, escape
from ckptdoctor.keys.names import join, natural_key, numbers, printable, skeleton, split
from ckptdoctor.keys.rules import FirstMatch, Rule
from ckptdoctor.keys.templates import expand_groups, fold_in_order

__all__ = [
    "FirstMatch",
    "Fold",
    "PatternError",
    "Rule",
    "cover",
    "escape",
    "expand_groups",
    "fold",
    "fold_in_order",
    "has_wildcards",
    "join",
    "matches",
    "natural_key",
    "numbers",
    "printable",
    "select",
    "select_all",
    "skeleton",
    "split",
    "unfold",
]
