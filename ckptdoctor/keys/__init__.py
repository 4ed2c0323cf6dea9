"""Keys as text: segments, order, exact folding, globs, and invertible rename rules.

Each part is imported on first use: whoever only shows or splits keys needs no grammar of patterns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckptdoctor.keys.names import join, natural_key, numbers, printable, skeleton, split

if TYPE_CHECKING:
    from ckptdoctor.keys.covering import cover
    from ckptdoctor.keys.folding import Fold, fold, unfold
    from ckptdoctor.keys.globs import has_wildcards, matches, select, select_all
    from ckptdoctor.keys.grammar import PatternError, escape
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

# Name -> the module that defines it.
_HOMES = {
    "cover": "covering",
    **dict.fromkeys(("Fold", "fold", "unfold"), "folding"),
    **dict.fromkeys(("has_wildcards", "matches", "select", "select_all"), "globs"),
    **dict.fromkeys(("PatternError", "escape"), "grammar"),
    **dict.fromkeys(("FirstMatch", "Rule"), "rules"),
    **dict.fromkeys(("expand_groups", "fold_in_order"), "templates"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value
