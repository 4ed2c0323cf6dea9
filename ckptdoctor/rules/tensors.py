"""CKD3xx: the tensors themselves. Shapes, layouts, dtypes, devices, ties, and other architectures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ckptdoctor.diagnostics import Diagnostic, Line
from ckptdoctor.keys import printable
from ckptdoctor.rules.base import Case, Example, Rule
from ckptdoctor.rules.naming import question_helps
from ckptdoctor.rules.words import count, flag_helps, key_lines, quoted, shape_text
from ckptdoctor.trees import ParamTree


class ShapeMismatch(Rule):
    """A tensor has another shape in the checkpoint than in the model.

    What it means
        The same name, another size: a head for another number of classes, a resized vocabulary or
        position table, another number of input channels.

    Why it matters
        ``load_state_dict`` refuses it even with ``strict=False``. No repair keeps all the trained values.

    What to do
        Decide: ``--reinit 'fc.**'`` keeps the model's initial values for it. If the model was meant
        to have the checkpoint's size, build it so: ``--kwargs '{"num_classes": 1000}'``.
    """

    code, name, severity = "CKD301", "shape-mismatch", "error"
    VALID = (Example({"fc.weight": (5, 3)}, {"fc.weight": (5, 3)}),)
    INVALID = (
        Example(
            {"a.weight": (7, 4), "fc.weight": (1000, 7), "fc.bias": (1000,)},
            {"a.weight": (7, 4), "fc.weight": (10, 7), "fc.bias": (10,)},
        ),
    )

    def check(self, case: Case) -> Iterator[Diagnostic]:
        """All pairs of equal name and different shape, one finding a module."""
        alignment, source = case.alignment, case.source
        if alignment is None or source is None or alignment.verdict == "incompatible":
            return
        pairs = case.mismatched
        groups: dict[str, list[tuple[str, str]]] = {}
        for s, t in pairs:
            groups.setdefault(t.rpartition(".")[0], []).append((s, t))
        if len(groups) > 3:
            groups = {"": list(pairs)}
        for module, members in groups.items():
            yield self._finding(case, source, module, members)

    def _finding(
        self, case: Case, source: ParamTree, module: str, pairs: list[tuple[str, str]]
    ) -> Diagnostic:
        target = case.target.tree
        targets = [t for _, t in pairs]
        known = [q for q in case.questions("shape") if set(q.targets) & set(targets)]
        reinit = flag_helps("reinit", targets, target.specs, "keep the model's initial values")
        others = (h for q in known for h in question_helps(case, q) if not h.command.startswith("--reinit"))
        helps = {h.command: h for h in (*reinit, *others)}
        return self.finding(
            _shape_title(source, target, module, pairs),
            place=case.model_place(targets[0]),
            evidence=side_by_side(source, target, pairs),
            notes=tuple(dict.fromkeys(printable(n) for q in known for n in q.notes))
            or ("no repair keeps the trained values, so none is chosen for you",),
            helps=list(helps.values()),
            keys=targets,
        )


def _shape_title(source: ParamTree, target: ParamTree, module: str, pairs: list[tuple[str, str]]) -> str:
    rows = {(source[s].shape[:1], target[t].shape[:1]) for s, t in pairs}
    rest = all(source[s].shape[1:] == target[t].shape[1:] for s, t in pairs)
    if module and rest and len(rows) == 1:
        a, b = rows.pop()
        if a and b and a != b:
            return f"{quoted(module)} has {a[0]} rows in the checkpoint, {b[0]} in the model"
    if len(pairs) == 1:
        return f"{quoted(pairs[0][1])} has another shape in the checkpoint"
    where = f" of {quoted(module)}" if module else ""
    return f"{len(pairs):,} tensors{where} have another shape in the checkpoint"


def side_by_side(source: ParamTree, target: ParamTree, pairs: Sequence[tuple[str, str]]) -> list[Line]:
    """A small table: model key, shape in the checkpoint, shape in the model."""
    rows = [(printable(t), shape_text(source[s].shape), shape_text(target[t].shape)) for s, t in pairs]
    first = max(len(r[0]) for r in rows)
    second = max(len("checkpoint"), *(len(r[1]) for r in rows))
    lines = [Line(f"{'':{first}}   {'checkpoint':{second}}   model")]
    return lines + [Line(f"{a:{first}}   {b:{second}}   {c}") for a, b, c in rows]


class TensorTransform(Rule):
    """Tensors need a transform, not only a name, to fit the model.

    What it means
        The two programs keep the same numbers in another layout: transposed (GPT-2's ``Conv1D``),
        fused or split (``qkv`` against ``q``, ``k``, ``v``), a linear layer against a 1x1 convolution.

    Why it matters
        The shapes differ, or worse, agree: a square matrix fits transposed as well.

    What to do
        Read the transforms. A safe one is proved by the non-square members of its family and loses nothing.
    """

    code, name, severity = "CKD302", "tensor-transform", "error"
    VALID = (Example({"a.weight": (2, 3)}, {"a.weight": (2, 3)}),)

    def check(self, case: Case) -> Iterator[Diagnostic]:
        """One finding, one group of lines a kind of transform."""
        if case.alignment is None or case.source is None:
            return
        groups: dict[tuple[str, ...], list[str]] = {}
        for match in case.alignment.matches.values():
            if match.status in ("safe", "unsafe") and match.ops and match.ops != ("copy",):
                groups.setdefault(match.ops, []).append(match.target)
        if not groups:
            return
        lines: list[Line] = []
        for ops, targets in groups.items():
            sources = [s for t in targets for s in case.alignment.matches[t].sources]
            lines += key_lines(dict.fromkeys(sources), "-", case.source.specs)
            lines += [Line(f"    {printable(' then '.join(ops))}")]
            lines += key_lines(targets, "+", case.target.tree.specs)
        keys = [t for targets in groups.values() for t in targets]
        unsafe = any(case.alignment.matches[t].status == "unsafe" for t in keys)
        reasons = dict.fromkeys(r for t in keys[:50] for r in case.alignment.matches[t].evidence)
        n = len(keys)
        yield self.finding(
            f"{count(n, 'tensor')} {'is' if n == 1 else 'are'} laid out in another way in the checkpoint",
            place=case.model_place(keys[0]),
            evidence=lines,
            why=printable("; ".join(list(reasons)[:2])),
            fix=(f"transform {count(n, 'tensor')}", "unsafe" if unsafe else "safe"),
            keys=keys,
        )


class DtypeCast(Rule):
    """Tensors have another dtype in the checkpoint than in the model.

    What it means
        Half precision saved to save space, or a model that was turned to half. ``load_state_dict`` casts
        silently while copying.

    Why it matters
        Widening loses nothing. Narrowing rounds, and values may fall out of range; integers are not
        floats at all.

    What to do
        Nothing if it is meant. Each cast is classed (lossless, rounding, range, truncation) and checked
        on the values when the plan is applied.
    """

    code, name, severity = "CKD303", "dtype-cast", "note"
    VALID = (Example({"a.weight": (2, 3)}, {"a.weight": (2, 3)}),)
    INVALID = (
        Example(
            {"a.weight": ((2, 3), {"dtype": "float16"})},
            {"a.weight": ((2, 3), {"dtype": "float32"})},
        ),
    )

    def check(self, case: Case) -> Iterator[Diagnostic]:
        """One finding a pair of dtypes."""
        if case.alignment is None or case.source is None:
            return
        if len(case.source.dtypes | case.target.tree.dtypes) == 1:
            return
        groups: dict[tuple[str, str], list[str]] = {}
        for match in case.alignment.matches.values():
            if match.sources and match.status in ("safe", "unsafe"):
                pair = (case.source[match.sources[0]].dtype, case.target.tree[match.target].dtype)
                if pair[0] != pair[1]:
                    groups.setdefault(pair, []).append(match.target)
        for (have, want), keys in groups.items():
            kind = cast_class(have, want)
            loses = kind not in ("", "lossless")
            yield self.finding(
                f"{count(len(keys), 'tensor')} {'is' if len(keys) == 1 else 'are'} {printable(have)} in "
                f"the checkpoint, {printable(want)} in the model",
                severity="warning" if loses else "note",
                place=(case.file, case.source_note),
                evidence=key_lines(keys) if len(keys) < len(case.target.tree) else (),
                why=f"the cast is {kind}" if kind else "",
                keys=keys,
            )


def cast_class(have: str, want: str) -> str:
    """The class of a cast by dtypes alone: "lossless", "rounding", "range" ..."""
    from ckptdoctor.casts import cast_class as classify

    return classify(have, want)


class ForeignDevice(Rule):
    """Tensors were saved on a device that this machine does not have.

    What it means
        A checkpoint remembers where each tensor lay (``cuda:3``, ``mps``, ``xla:0``).

    Why it matters
        ``torch.load`` puts every tensor back there and fails: "Attempting to deserialize object on a
        CUDA device but torch.cuda.is_available() is False".

    What to do
        Nothing for ckptdoctor, which reads the bytes onto the CPU and from there to the model's device.
        In your own code ``torch.load(path, map_location="cpu")``; ``auto_load(..., device=...)``.
    """

    code, name, severity = "CKD304", "foreign-device", "error"
    VALID = (Example({"a.weight": (2, 3)}, {"a.weight": (2, 3)}),)
    INVALID = (Example({"a.weight": ((2, 3), {"device": "nosuch:3"})}, {"a.weight": (2, 3)}),)

    def check(self, case: Case) -> Iterator[Diagnostic]:
        """One finding for all devices."""
        if case.source is None or not case.foreign:
            return
        keys = [k for k, s in case.source.specs.items() if s.device in case.foreign]
        names = ", ".join(quoted(d) for d in case.foreign)
        n = len(keys)
        yield self.finding(
            f"{count(n, 'tensor')} {'was' if n == 1 else 'were'} saved on {names}, "
            "which this machine does not have",
            place=(case.file, case.source_note),
            notes=('in your own code: torch.load(path, map_location="cpu")',),
            fix=("load them on the CPU, then on the model's device", "safe"),
            keys=keys,
        )


class TiedWeights(Rule):
    """Some keys of the model are one tensor; the checkpoint holds it only once, or not as a tie.

    What it means
        An output layer that shares the embedding's weight, for instance. A file may hold the tensor under
        one of its names only (safetensors cannot hold it twice).

    Why it matters
        ``load_state_dict`` reports the other name as missing; two differing copies would overwrite
        one another silently.

    What to do
        Nothing: the plan fills the tensor once and checks afterwards that the tie is intact.
    """

    code, name, severity = "CKD305", "tied-weights", "note"
    VALID = (Example({"a.weight": (2, 3)}, {"a.weight": (2, 3)}),)
    INVALID = (
        Example(
            {"emb.weight": (50, 8), "mid.weight": (8, 8)},
            {
                "emb.weight": ((50, 8), {"storage": "s"}),
                "mid.weight": (8, 8),
                "head.weight": ((50, 8), {"storage": "s"}),
            },
        ),
    )

    def check(self, case: Case) -> Iterator[Diagnostic]:
        """Tie groups of the model of which the checkpoint fills only a part by name."""
        if case.alignment is None or case.source is None:
            return
        matches = case.alignment.matches
        have = set(case.stripped.values())
        groups = []
        for group in case.target.tree.ties:
            sources = {matches[t].sources for t in group if t in matches}
            filled = any(matches[t].status in ("safe", "unsafe") for t in group if t in matches)
            if filled and len(sources) == 1 and not all(t in have for t in group):
                groups.append(group)
        if not groups:
            return
        keys = [t for group in groups for t in group]
        verb = "has" if len(groups) == 1 else "have"
        yield self.finding(
            f"{count(len(groups), 'tensor')} of the model {verb} several names",
            place=case.model_place(keys[0]),
            evidence=[Line(" = ".join(printable(t) for t in g), "+") for g in groups],
            fix=("fill it once and keep the tie", "safe"),
            keys=keys,
        )


class InvisibleLayout(Rule):
    """Names and shapes fit, but these names are known for a layout that shapes do not show.

    What it means
        Fused q/k/v by head or in three blocks, rotary halves or pairs, the flatten order before a linear
        layer: two programs may keep the same shapes and mean different numbers.

    Why it matters
        Everything loads strictly and the outputs are wrong.

    What to do
        Compare one forward pass with the original program before you trust the result.
    """

    code, name, severity = "CKD306", "invisible-layout", "warning"
    VALID = (Example({"a.weight": (2, 3)}, {"a.weight": (2, 3)}),)

    def check(self, case: Case) -> Iterator[Diagnostic]:
        """One finding a warning of the alignment."""
        for words in case.alignment.warnings if case.alignment is not None else ():
            yield self.finding(printable(words), place=(case.file, case.source_note))


class OtherArchitecture(Rule):
    """The checkpoint belongs to another network; no repair is offered.

    What it means
        Little of it fits, or every shape differs by a constant ratio: another variant (base and large),
        a shard of a tensor-parallel training, or another architecture.

    Why it matters
        A repair of single tensors would load something that is not the model.

    What to do
        Build the model that the checkpoint was made for (``--kwargs``), or get the right file.
    """

    code, name, severity = "CKD307", "other-architecture", "error"
    VALID = (Example({"a.weight": (2, 3)}, {"a.weight": (2, 3)}),)
    INVALID = (
        Example(
            {f"layers.{i}.fc.weight": (64, 32) for i in range(12)},
            {f"layers.{i}.fc.weight": (128, 64) for i in range(12)},
        ),
    )

    def check(self, case: Case) -> Iterator[Diagnostic]:
        """The alignment's refusal with a few keys of either side."""
        alignment, source = case.alignment, case.source
        if alignment is None or source is None or alignment.verdict != "incompatible":
            return
        have, want = source.specs, case.target.tree.specs
        facts = f"{printable(case.target.label)} has {count(len(want), 'tensor')}"
        yield self.finding(
            "the checkpoint belongs to another network or variant",
            place=(case.file, case.source_note),
            evidence=[*key_lines(have, "-", have)[:4], *key_lines(want, "+", want)[:4]],
            why=printable(alignment.refusal),
            notes=(f"the checkpoint has {count(len(have), 'tensor')}, {facts}",),
        )
