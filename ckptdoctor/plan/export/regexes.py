r"""Plans as the key mappings of two libraries, which rename by regular expressions one after the other.

mmengine 0.10 (``runner/checkpoint.py``): ``for p, r in revise_keys: {re.sub(p, r, k): v ...}``.
transformers 5 (``core_model_loading.py``, ``WeightRenaming``): for each pair in turn, if the pattern is
found anywhere, the text that it fits is replaced by the target, literally but for a few signs.

Both go through all pairs, so a name that is new may be taken for an old one: where that would happen all
names get a mark first and lose it at the end. The result is proved on every name of the checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ckptdoctor.errors import PlanError
from ckptdoctor.plan.export.names import find_names

MARK = "ckptdoctor_new."
_PLAIN = re.compile(r"[A-Za-z0-9_.\-]*")

Pairs = list[tuple[str, str]]


def mmengine(plain: Mapping[str, str], state_dict: str) -> str:
    """``--format mmengine``: the argument ``revise_keys`` of ``load_checkpoint``."""
    if state_dict not in ("", "state_dict"):
        raise _elsewhere("mmengine reads the file itself or its `state_dict`", f"for {state_dict!a}")
    return (
        "# For mmengine: load_checkpoint(model, file, strict=True, revise_keys=REVISE_KEYS).\n"
        "# Made by `ckptdoctor plan --format mmengine`; it replaces the default, which strips `module.`.\n"
        f"REVISE_KEYS = {_table(_pairs(plain, 'mmengine'), '[({!a}, {!a})]')}\n"
    )


def transformers(plain: Mapping[str, str], state_dict: str) -> str:
    """``--format transformers``: the argument ``key_mapping`` of ``from_pretrained``, or renamings."""
    if state_dict:
        raise _elsewhere("transformers reads the file itself", f"for {state_dict!a} in it")
    return (
        "# For transformers 5: from_pretrained(path, key_mapping=KEY_MAPPING), or in a conversion mapping\n"
        "# [WeightRenaming(source, target) for source, target in KEY_MAPPING.items()].\n"
        "# Made by `ckptdoctor plan --format transformers`.\n"
        f"KEY_MAPPING = {_table(_pairs(plain, 'transformers'), '{{!a}: {!a}}')}\n"
    )


def _elsewhere(reads: str, place: str) -> PlanError:
    return PlanError(f"{reads}, and the plan is {place}; use python or hook")


def _table(pairs: Pairs, form: str) -> str:
    """One pair a line; the first and last sign of ``form`` are the brackets around all."""
    lines = [f"    {form[1:-1].format(old, new)},\n" for old, new in pairs]
    return form[0] + ("\n" + "".join(lines) if lines else "") + form[-1]


def _pairs(plain: Mapping[str, str], form: str) -> Pairs:
    odd = next((n for pair in plain.items() for n in pair if not _PLAIN.fullmatch(n)), None)
    if odd is not None:
        raise PlanError(
            f"`--format {form}` takes names of letters, digits and ._- only, and there is {odd!a}; "
            "use python or hook"
        )
    names = find_names(plain)
    rows = [(f"^{re.escape(old)}$", new) for old, new in names.whole.items()]
    rows += [(f"^{re.escape(old)}", new) for old, new in names.prefixes]
    marked = [(p, MARK + r) for p, r in rows] + [(f"^{re.escape(MARK)}", "")]
    single = [(f"^{re.escape(old)}$", MARK + new) for old, new in plain.items() if old != new]
    for pairs in (rows, marked, [*single, (f"^{re.escape(MARK)}", "")]):
        if all(_renamed(old, pairs) == new for old, new in plain.items()):
            return pairs
    raise PlanError(f"`--format {form}` renames in a fixed order, and no order does this; use python or hook")


def _renamed(name: str, pairs: Sequence[tuple[str, str]]) -> str:
    for pattern, new in pairs:
        name = re.sub(pattern, new, name)
    return name
