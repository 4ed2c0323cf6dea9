"""Learning rate schedulers and gradient scalers: their saved state, checked, and fitted to other groups."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ckptdoctor.diagnostics import Diagnostic
from ckptdoctor.training.findings import finding
from ckptdoctor.training.groups import Hyper
from ckptdoctor.training.live import by_name, paired
from ckptdoctor.training.source import NotPlain, Part, Training, plain

# Lists with one value for each parameter group (torch.optim.lr_scheduler).
PER_GROUP = frozenset({
    "base_lrs", "_last_lr", "min_lrs", "max_lrs", "base_momentums", "max_momentums", "lr_lambdas", "swa_lrs",
})  # fmt: skip


@dataclass(frozen=True)
class StateWork:
    """One scheduler or scaler and the state that it gets."""

    role: str
    thing: Any
    state: Mapping[str, Any]

    def load(self) -> None:
        """Through its own ``load_state_dict``."""
        self.thing.load_state_dict({k: _like(getattr(self.thing, k, None), v) for k, v in self.state.items()})


def saved_states(value: Any) -> dict[str, Any]:
    """The states in a value, by name, as :func:`by_name` names the objects."""
    if isinstance(value, list | tuple):
        return {"": value[0]} if len(value) == 1 else {str(i): v for i, v in enumerate(value)}
    if isinstance(value, Mapping):
        if value and "_schedulers" not in value and all(map(_states, value.values())):
            return {str(k): v[0] if isinstance(v, list) and len(v) == 1 else v for k, v in value.items()}
        return {"": value}
    return {}


def _states(value: Any) -> bool:
    """A state, or a list of states (mmengine's ``param_schedulers`` by optimizer)."""
    inside = value if isinstance(value, list) else [value]
    return bool(inside) and all(isinstance(v, Mapping) for v in inside)


def schedule_work(
    training: Training, role: str, given: Any, hypers: Mapping[str, Hyper]
) -> tuple[list[StateWork], list[Diagnostic]]:
    """What to load into the schedulers (or scalers) at hand, or what stands against it."""
    things = by_name(given, role)
    part = training.parts.get(role)  # type: ignore[call-overload]  # any text may be asked for
    if not things:
        return [], []
    if part is None:
        return [], [absent(training, role)]
    states = saved_states(part.value)
    names = paired(things, states)
    if names is None:
        return [], [_other_count(part, role, len(things), len(states))]
    work, problems = [], []
    for name, thing in things.items():
        try:
            state = plain(part, states[names[name]])
        except NotPlain as error:
            problems.append(_opaque(part, role, str(error)))
            continue
        problem = _unfit(part, role, thing, state)
        if problem is None and role == "scheduler":
            hyper = hypers.get(name) or (next(iter(hypers.values())) if len(hypers) == 1 else None)
            state, problem = _regrouped(part, thing, state, hyper)
        if problem is not None:
            problems.append(problem)
        else:
            work.append(StateWork(role, thing, state))
    return work, problems


def absent(training: Training, role: str) -> Diagnostic:
    """CKD609: asked for, and not in the file."""
    return finding(
        "CKD609",
        f"the checkpoint has no {role} state",
        place=training.file,
        lines=[f"it has: {', '.join([*training.parts, *training.rest])[:300] or 'weights only'}"],
        why=f"a resumed run would silently begin with a fresh {role}",
        helps=[(f"{role}=None", f"resume without it; the {role} at hand stays as it is")],
    )


def _other_count(part: Part, role: str, ours: int, theirs: int) -> Diagnostic:
    return finding(
        "CKD609",
        f"{ours} {role} objects are given, the checkpoint has the state of {theirs}",
        place=part.where,
        helps=[(f"{role}=[...]", "give as many, in the order of the checkpoint, or a dict by name")],
    )


def _opaque(part: Part, role: str, words: str) -> Diagnostic:
    return finding(
        "CKD609",
        f"the {role} state cannot be made without running the file",
        place=part.where,
        why=words,
        helps=[(f"{role}=None", "resume without it")],
    )


def _unfit(part: Part, role: str, thing: Any, state: Any) -> Diagnostic | None:
    if not isinstance(state, Mapping):
        return _opaque(part, role, "it is no mapping")
    if role == "scaler" and not state and getattr(thing, "is_enabled", lambda: True)():
        return finding(
            "CKD609",
            "the scaler state is empty: it was saved from a disabled GradScaler",
            place=part.where,
            helps=[("scaler=None", "resume without it; the scaler at hand stays as it is")],
        )
    known = vars(thing) if hasattr(thing, "__dict__") else {}
    if role == "scheduler" and known and state and not set(state) & set(known):
        return finding(
            "CKD609",
            "the scheduler state is that of another kind of scheduler",
            place=part.where,
            lines=[f"saved: {', '.join(map(str, state))}"[:200], f"at hand: {type(thing).__name__}"],
            helps=[("scheduler=None", "resume without it")],
        )
    return None


def _regrouped(
    part: Part, thing: Any, state: Mapping[str, Any], hyper: Hyper | None
) -> tuple[Mapping[str, Any], Diagnostic | None]:
    """The lists with a value for each group, in the order of the groups at hand."""
    groups = getattr(getattr(thing, "optimizer", None), "param_groups", None)
    count = len(groups) if isinstance(groups, list) else None
    lists = {k: v for k, v in state.items() if k in PER_GROUP and isinstance(v, list)}
    if count is None or not lists or ((hyper is None or hyper.same_groups) and _all_long(lists, count)):
        return _inner(part, thing, state, hyper)
    made = dict(state)
    for key, values in lists.items():
        fitted = _fitted(values, count, hyper)
        if fitted is None:
            return state, finding(
                "CKD609",
                f"the scheduler's `{key}` has {len(values)} values, the optimizer has {count} groups",
                place=part.where,
                lines=[f"{key}: {values}"[:200]],
                why="which value each group had cannot be known",
                helps=[("scheduler=None", "resume without it")],
            )
        made[key] = fitted
    return _inner(part, thing, made, hyper)


def _inner(
    part: Part, thing: Any, state: Mapping[str, Any], hyper: Hyper | None
) -> tuple[Mapping[str, Any], Diagnostic | None]:
    """Schedulers inside of schedulers (SequentialLR, ChainedScheduler)."""
    inner, saved = getattr(thing, "_schedulers", None), state.get("_schedulers")
    if not isinstance(inner, list) or not isinstance(saved, list):
        return state, None
    if len(inner) != len(saved):
        return state, _other_count(part, "scheduler", len(inner), len(saved))
    made = []
    for one, its in zip(inner, saved, strict=True):
        fitted, problem = _regrouped(part, one, its, hyper)
        if problem is not None:
            return state, problem
        made.append({k: _like(getattr(one, k, None), v) for k, v in fitted.items()})
    return {**state, "_schedulers": made}, None


def _all_long(lists: Mapping[str, Sequence[Any]], count: int) -> bool:
    return all(len(v) == count for v in lists.values())


def _fitted(values: list[Any], count: int, hyper: Hyper | None) -> list[Any] | None:
    if hyper is not None and len(hyper.origin) == count:
        places = [o for o in hyper.origin if o is not None and o < len(values)]
        if len(places) == count:
            return [values[o] for o in places]
    if values and all(v == values[0] for v in values):
        return [values[0]] * count
    return None


def _like(own: Any, value: Any) -> Any:
    """The saved value in the type that the attribute has now."""
    if isinstance(own, Counter) and isinstance(value, Mapping):
        return Counter(value)
    if isinstance(own, deque) and isinstance(value, list | tuple):
        return deque(value, own.maxlen)
    if isinstance(own, tuple) and isinstance(value, list):
        return tuple(value)
    return value
