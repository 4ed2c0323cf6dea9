"""What is left over: why a checkpoint key may stay unused, and the questions about the rest."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ckptdoctor.align.model import Match, Question
from ckptdoctor.align.names import is_derived, is_training_state, table
from ckptdoctor.align.offers import offers
from ckptdoctor.align.prefix import relative_name
from ckptdoctor.keys import fold
from ckptdoctor.wrappers import strip_key

if TYPE_CHECKING:
    from ckptdoctor.align.engine import State

TIED_COPY = "a copy of what the model ties to "
_MASK_RANK = 4  # `attn.bias` with four dimensions is a causal mask, not a bias


def reasons(state: State, keys: Sequence[str], used: set[str]) -> dict[str, tuple[str, bool]]:
    """Key -> reason and whether it is good enough to leave the key unused without asking."""
    if not keys:
        return {}
    alive = {part for key in used for part in _parents(strip_key(key))}
    twins = {state.target[k].shape: leader for k, leader in state.followers.items()}
    fresh, copies = _reinitialised(state), _copies(state)
    known = dict.fromkeys(fresh, ("its model key keeps its initial values, as decided", True))
    known |= {key: (f"{TIED_COPY}`{leader}`", True) for key, leader in copies.items()}
    return {
        key: known[key] if key in known and not state.refusal else _reason(state, key, alive, twins)
        for key in keys
    }


def _copies(state: State) -> dict[str, str]:
    """Checkpoint keys named like a tied key of the model whose tensor is filled from its partner's."""
    found = {}
    for name, key in state.target_names.items():
        mine, match = state.source_names.get(name), state.matches.get(key)
        if mine is None or match is None or not match.evidence or len(match.sources) != 1:
            continue
        tied, _, leader = match.evidence[0].partition("tied to ")
        alike = state.source[mine].shape == state.source[match.sources[0]].shape
        if not tied and leader and alike and mine != match.sources[0]:
            found[mine] = leader.strip("`")
    return found


def _reinitialised(state: State) -> set[str]:
    """Checkpoint keys whose namesake in the model keeps its initial values by a decision."""
    kept = (m.target for m in state.matches.values() if m.status == "kept" and _by_decision(m))
    named = {relative_name(strip_key(key), state.base.target) for key in kept}
    return {key for name, key in state.source_names.items() if name in named}


def _by_decision(match: Match) -> bool:
    return any(reason.startswith("decision: reinit=") for reason in match.evidence)


def _reason(state: State, key: str, alive: set[str], twins: dict[tuple[int, ...], str]) -> tuple[str, bool]:
    name, shape = strip_key(key), state.source[key].shape
    if state.refusal:
        return "no repair is offered", False
    if is_training_state(key):
        return "training state, not a weight", True
    if is_derived(name) or (name.endswith("attn.bias") and len(shape) == _MASK_RANK):
        return "a buffer that models compute themselves", True
    if shape in twins and _tied_copy(state, twins[shape]):
        return f"{TIED_COPY}`{twins[shape]}`", True
    head = name.partition(".")[0]
    base = state.base.source
    if head in table()["training"]["passengers"] and head not in alive:
        return "belongs to training, not to the model", True
    if base and not name.startswith(base + "."):
        return f"outside `{base}.`, which holds this model", True
    return "nothing in the model takes it", False


def _tied_copy(state: State, leader: str) -> bool:
    match = state.matches.get(leader)
    return match is not None and match.status == "safe" and len(match.sources) == 1


def equal_to(state: State, reason: str) -> str:
    """The checkpoint key that a tied copy repeats, when that is the reason."""
    if not reason.startswith(TIED_COPY):
        return ""
    leader = state.matches[reason.removeprefix(TIED_COPY).strip("`")]
    return leader.sources[0]


def _parents(name: str) -> Iterable[str]:
    segments = name.split(".")
    return (".".join(segments[:i]) for i in range(1, len(segments)))


def questions(state: State) -> list[Question]:
    """Grouped questions about missing, mismatched, undecided and unexpected keys."""
    if not state.unused and {m.status for m in state.matches.values()} == {"safe"}:
        return []
    spoken = {k for q in state.questions for k in q.targets}
    found = []
    missing = [m for m in state.matches.values() if m.status == "missing" and m.target not in spoken]
    same = _namesakes(state)
    later = {k for group in state.target.ties for k in group[1:] if group[0] in same}
    mismatched = [m.target for m in missing if m.target in same and m.target not in later]
    missing = [m for m in missing if m.target not in later]
    found += _shape_questions(state, {k: same[k] for k in mismatched})
    found += _missing_questions([m.target for m in missing if m.target not in set(mismatched)])
    found += _open_questions(state, spoken)
    loose = [u.source for u in state.unused.values() if not u.decided and u.reason.startswith("nothing")]
    namesakes = {same.get(k) for k in (*(m.target for m in missing), *later)}
    loose = [k for k in loose if k not in namesakes]
    for group in _by_parent(loose).values():
        flag = _pattern(group)
        found.append(
            Question(
                "unexpected",
                f"{_count(group, 'checkpoint key')} nothing in the model",
                (),
                tuple(group),
                (),
                ((f"--drop '{flag}'", "leave them unused"),),
            )
        )
    return found


def _count(keys: list[str], what: str) -> str:
    return f"`{keys[0]}` fills" if len(keys) == 1 else f"{len(keys)} {what}s under `{_stem(keys)}` fill"


def _namesakes(state: State) -> dict[str, str]:
    """Model key -> the unused checkpoint key of the same name, whose shape is what is wrong."""
    found = {}
    for name, key in state.target_names.items():
        mine = state.source_names.get(name)
        if mine is not None and mine in state.unused:
            found[key] = mine
    return found


def _shape_questions(state: State, pairs: Mapping[str, str]) -> list[Question]:
    note = "no repair keeps the trained values, so none is chosen for you"
    found = []
    for group in _by_parent(pairs).values():
        title = f"`{_stem(group)}` has another shape in the model"
        question = _reinit_question("shape", title, group, (note,))
        more = offers(state, {k: pairs[k] for k in group})
        found.append(replace(question, flags=(*question.flags, *more)))
    return found


def _missing_questions(keys: list[str]) -> list[Question]:
    found = []
    for group in _by_parent(keys).values():
        are = "1 model key is" if len(group) == 1 else f"{len(group)} model keys are"
        title = f"{are} not in the checkpoint, under `{_stem(group)}`"
        found.append(_reinit_question("missing", title, group, ()))
    return found


def _reinit_question(kind: str, title: str, group: list[str], notes: tuple[str, ...]) -> Question:
    flag = (f"--reinit '{_pattern(group)}'", "keep the model's initial values")
    return Question(kind, title, tuple(group), (), notes, (flag,))


def _open_questions(state: State, spoken: set[str]) -> list[Question]:
    """Undecided keys grouped by the reason and by the sources that compete."""
    groups: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for match in state.matches.values():
        if match.status == "undecided" and match.target not in spoken:
            rivals = frozenset(_family(s) for c in match.choices for s in c.sources)
            groups[(match.evidence[:1], rivals)].append(match.target)
    return [_open_question(state, keys) for keys in groups.values()]


def _family(key: str) -> str:
    """The module's path without numbers: competing blocks and tensors are one question."""
    return re.sub(r"\d+", "#", key.rpartition(".")[0])


def _open_question(state: State, keys: list[str]) -> Question:
    first = state.matches[keys[0]]
    choice = first.choices[0]
    if choice.ops and all([c.ops for c in state.matches[k].choices] == [choice.ops] for k in keys):
        return _only_question(state, keys)
    layouts = len({c.sources for c in first.choices}) == 1 and len(first.choices) > 1
    sources = list(dict.fromkeys(s for k in keys for c in state.matches[k].choices for s in c.sources))
    title = f"more than one way to fill {len(keys)} model key{'s' * (len(keys) > 1)} under `{_stem(keys)}`"
    if layouts:
        title = f"`{_stem(keys)}` fits in more than one layout"
    elif all(len(state.matches[k].choices) == 1 for k in keys):
        title = f"`{_stem(keys)}` may be `{_stem(sources)}` of the checkpoint, or not in it"
    flag = f"--rename '{choice.sources[0]}={first.target}'" if len(choice.sources) == 1 else ""
    notes = first.evidence or ("shapes agree and no name, number or place in the tree decides",)
    return Question(
        "layout" if layouts else "equal-shapes",
        title,
        tuple(keys),
        tuple(sources),
        notes,
        ((flag, "declare one of them; the rest may follow"),) if flag else (),
    )


def _only_question(state: State, keys: list[str]) -> Question:
    """Keys that fit in one way, which is not sure enough."""
    first = state.matches[keys[0]]
    folds, ops = fold(keys), "|".join(first.choices[0].ops)
    one = len(folds) == 1
    pattern = folds[0].text if one else keys[0]
    return Question(
        "layout",
        f"`{pattern if one else _stem(keys)}` fits in one way, through `{ops}`, and may be another network's",
        tuple(keys),
        tuple(dict.fromkeys(s for k in keys for c in state.matches[k].choices for s in c.sources)),
        first.evidence,
        (
            (f"--op '{pattern}={ops}'", "they are the same weights, kept that way"),
            (f"--reinit '{pattern}'", "they are not: keep the model's initial values"),
        ),
    )


def _by_parent(keys: Iterable[str]) -> dict[str, list[str]]:
    """Keys by the first two segments, enough to ask about a head or a tower at once."""
    groups: dict[str, list[str]] = defaultdict(list)
    for key in keys:
        parent = key.rpartition(".")[0]
        groups[".".join(parent.split(".")[:2])].append(key)
    return groups


def _stem(keys: list[str]) -> str:
    """The longest path that all keys share."""
    if len(keys) == 1:
        return keys[0]
    parts = [k.split(".") for k in keys]
    stem = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        stem.append(column[0])
    return ".".join(stem) or keys[0].partition(".")[0]


def _pattern(keys: list[str]) -> str:
    if len(keys) == 1:
        return keys[0]
    parts = [k.split(".") for k in keys]
    shared = _stem(keys)
    return f"{shared}.**" if all(".".join(p).startswith(shared + ".") for p in parts) else "**"
