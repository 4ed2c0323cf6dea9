"""From per-key transforms to few transform steps over families of keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ckptdoctor.align.model import Match
from ckptdoctor.keys import fold_in_order
from ckptdoctor.keys.grammar import escape
from ckptdoctor.plan.model import Safety, Transform
from ckptdoctor.planner.candidates import Literals, cut
from ckptdoctor.planner.indices import Formula, Row, Within, formulas, limited_parts, pattern, variable_names
from ckptdoctor.planner.wanted import why
from ckptdoctor.trees import ParamTree

AS_IS = ((), ("copy",))  # the ops of a tensor that only changes its name


class Set(NamedTuple):
    """Sources that belong together, and what is made of them: ``(target, chain)``."""

    sources: tuple[str, ...]
    made: tuple[tuple[str, str], ...]
    safety: Safety
    why: str = ""

    @property
    def plain(self) -> bool:
        """Whether it is one tensor that only changes its name."""
        return len(self.sources) == 1 and len(self.made) == 1 and self.made[0][1] == "copy"


def sets(matches: Iterable[Match], names: Mapping[str, str], source: ParamTree) -> list[Set]:
    """The matches grouped by their sources; ``names`` gives a checkpoint key's name after the strips."""
    groups: dict[tuple[str, ...], list[Match]] = {}
    for match in matches:
        groups.setdefault(match.sources, []).append(match)
    found: list[Set] = []
    for sources, made in groups.items():
        if len(made) == len(sources) == 1 and made[0].ops in AS_IS:
            match = made[0]
            kind: Safety = "safe" if match.status == "safe" else "unsafe"
            found.append(Set((names[sources[0]],), ((match.target, "copy"),), kind, why(made)))
            continue
        safety = _safety(made, [source[s].shape for s in sources])
        chains = tuple((m.target, "|".join(m.ops) or "copy") for m in made)
        found.append(Set(tuple(names[s] for s in sources), chains, safety, why(made)))
    return found


def _safety(made: Sequence[Match], shapes: Sequence[tuple[int, ...]]) -> Safety:
    """Unsafe when a match is, or when values of a source end nowhere."""
    if any(m.status != "safe" for m in made):
        return "unsafe"
    if all(not m.ops or m.ops == ("copy",) for m in made):
        return "safe"
    from ckptdoctor.ops import covers, parse_chain

    chains = [parse_chain(m.ops) for m in made]
    if any(c.effect == "lossy" for c in chains):
        return "unsafe"
    if not any(c.partial for c in chains):
        return "safe"
    whole = any(not c.partial for c in chains)
    return "safe" if whole or (len(shapes) == 1 and covers(chains, shapes[0])) else "unsafe"


def by_sharing(found: Sequence[Set]) -> tuple[list[Set], list[Set]]:
    """The sets that have their sources to themselves (or come first), and those that share them."""
    exclusive: list[Set] = []
    shared: list[Set] = []
    used: set[str] = set()
    # What only changes its name stays a rename; larger sets are told to share.
    for entry in sorted(found, key=lambda s: len(s.sources)):
        if used.isdisjoint(entry.sources):
            used.update(entry.sources)
            exclusive.append(entry)
        else:
            shared.append(entry)
    return exclusive, shared


@dataclass(frozen=True, slots=True)
class _Family:
    """What must agree for sets to become one step."""

    texts: tuple[Literals, ...]  # of all sources, then of all targets
    sources: int
    chains: tuple[str, ...]
    safety: Safety
    shared: bool


def transform_steps(found: Sequence[Set], shared: Sequence[Set], limited: bool) -> list[Transform]:
    """Steps for these sets; those of ``shared`` may use tensors that other steps use too.

    ``limited`` writes out which numbers are meant, for families that have strangers of the same name.
    """
    families: dict[_Family, dict[Row, str]] = {}
    for entry, is_shared in [(s, False) for s in found] + [(s, True) for s in shared]:
        family, row = _family(entry, is_shared)
        families.setdefault(family, {})[row] = entry.why
    parts = [(family, f, whys) for family, whys in families.items() for f in formulas(list(whys))]
    if limited:
        return [_step(family, *part, whys) for family, f, whys in parts for part in limited_parts(f)]
    steps = _join_leaves([_step(family, f, {}, whys) for family, f, whys in parts])
    # Specific before general: an exception has fewer open places.
    return sorted(steps, key=lambda s: s.from_[0].count("{") + s.from_[0].count("*"))


def _family(entry: Set, shared: bool) -> tuple[_Family, Row]:
    pieces = [cut(k) for k in (*entry.sources, *(m[0] for m in entry.made))]
    chains = tuple(m[1] for m in entry.made)
    family = _Family(tuple(p[0] for p in pieces), len(entry.sources), chains, entry.safety, shared)
    return family, (pieces[0][1], tuple(n for p in pieces[1:] for n in p[1]))


def _step(family: _Family, formula: Formula, within: Within, whys: Mapping[Row, str]) -> Transform:
    names = variable_names(formula)
    # Only the first source limits the numbers: it decides which sets there are.
    texts = [pattern(family.texts[0], formula.old, names, within)]
    rest = formula.new
    for literals in family.texts[1:]:
        count = len(literals) - 1
        texts.append(pattern(literals, rest[:count], names, {}))
        rest = rest[count:]
    return Transform(
        from_=tuple(fold_in_order(texts[: family.sources])),
        to=tuple(texts[family.sources :]),
        apply=family.chains,
        keys=len(formula.rows) * len(family.chains),
        why=Counter(whys[row] for row in formula.rows).most_common(1)[0][0],
        safety=family.safety,
        shared=family.shared,
    )


def _join_leaves(steps: Sequence[Transform]) -> list[Transform]:
    """``qkv.weight`` and ``qkv.bias`` that are treated alike become ``qkv.*``."""
    groups: dict[tuple[object, ...], list[Transform]] = {}
    for step in steps:
        groups.setdefault(_starred(step) or (id(step),), []).append(step)
    return [_with_star(g) if len(g) > 1 else g[0] for g in groups.values()]


def _starred(step: Transform) -> tuple[object, ...] | None:
    leaves = {p.rpartition(".")[2] for p in (*step.sources, *step.to)}
    if len(leaves) != 1 or not leaves.pop().isidentifier() or not all("." in p for p in step.sources):
        return None
    return tuple(_parents(step.sources)), tuple(_parents(step.to)), step.apply, step.safety, step.shared


def _parents(patterns: Sequence[str]) -> list[str]:
    return [p.rpartition(".")[0] for p in patterns]


def _with_star(steps: Sequence[Transform]) -> Transform:
    first = steps[0]
    return Transform(
        from_=tuple(fold_in_order([p + ".*" for p in _parents(first.sources)])),
        to=tuple(p + ".*" for p in _parents(first.to)),
        apply=first.apply,
        keys=sum(s.keys for s in steps),
        why=first.why,
        safety=first.safety,
        shared=first.shared,
    )


def literal_steps(found: Sequence[Set], shared: Sequence[Set]) -> list[Transform]:
    """One step for each set, for the rare case that families fit more than they should."""
    return [_literal(s, False) for s in found] + [_literal(s, True) for s in shared]


def _literal(entry: Set, shared: bool) -> Transform:
    return Transform(
        from_=tuple(fold_in_order([escape(s) for s in entry.sources])),
        to=tuple(escape(m[0]) for m in entry.made),
        apply=tuple(m[1] for m in entry.made),
        keys=len(entry.made),
        why=entry.why,
        safety=entry.safety,
        shared=shared,
    )
