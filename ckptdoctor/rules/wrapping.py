"""CKD1xx: what stands around the tensors, as names (wrappers) or as dicts (envelopes)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from ckptdoctor.align.model import Strip
from ckptdoctor.diagnostics import Diagnostic, Help, Line
from ckptdoctor.keys import printable
from ckptdoctor.rules.base import Case, Example, Rule
from ckptdoctor.rules.strips import added_segment, column
from ckptdoctor.rules.words import columns, count, flag, quoted, shell_words, tree_words

SHOWN = 64  # columns of an example key


class WrapperPrefix(Rule):
    """Keys of the checkpoint carry the name of a wrapper that the model does not have.

    What it means
        ``torch.nn.DataParallel`` and ``DistributedDataParallel`` put the network into an attribute
        called ``module``, ``torch.compile`` into ``_orig_mod``, FSDP into ``_fsdp_wrapped_module``,
        a LightningModule into an attribute of its author's choice. When the wrapped object's
        ``state_dict()`` is saved, that name becomes the first segment of every key (or stands in the
        middle, when only a part of the network was wrapped).

    Why it matters
        ``load_state_dict`` compares whole names: not one key fits. With ``strict=False`` nothing is
        loaded and nothing is said.

    What to do
        Let the plan strip it: it removes whole segments, never substrings (``mlp_module.`` stays), and
        only where the model has no child of that name. Next time save ``model.module.state_dict()``.
    """

    code, name, severity = "CKD101", "wrapper-prefix", "error"
    VALID = (
        Example({"module.a.weight": (2, 3)}, {"module.a.weight": (2, 3)}),
        Example({"mlp_module.weight": (2, 3)}, {"mlp_module.weight": (2, 3)}),
    )
    INVALID = (
        Example(
            {"module.a.weight": (2, 3), "module.a.bias": (2,)},
            {"a.weight": (2, 3), "a.bias": (2,)},
        ),
    )

    def check(self, case: Case) -> Iterator[Diagnostic]:
        """One finding a strip of the alignment."""
        if case.alignment is None or case.source is None:
            return
        for strip, (before, after) in zip(case.alignment.strips, pairwise(case.strips), strict=True):
            hit = [key for key, name in after.items() if name != before[key]]
            # A prefix that no wrapper is known for, and that makes no name fit, is part of a rename.
            useful = strip.wrapper or any(case.stripped[key] == case.partners.get(key) for key in hit)
            if hit and useful:
                yield self._finding(case, strip, hit)

    def _finding(self, case: Case, strip: Strip, hit: list[str]) -> Diagnostic:
        segment = quoted(strip.segment + ".")
        n = len(hit)
        everywhere = case.source is not None and n == len(case.source)
        if strip.anywhere:
            title = f"{count(n, 'key')} of the checkpoint {'holds' if n == 1 else 'hold'} {segment}"
        elif everywhere:
            title = f"every key in the checkpoint starts with {segment}"
        else:
            title = f"{n:,} of {count(len(case.source or ()), 'key')} in the checkpoint start with {segment}"
        origin = f"written by {strip.wrapper}" if strip.wrapper else "the model has no such level"
        return self.finding(
            title,
            place=(case.file, case.source_note),
            evidence=underlined(hit[0], strip.segment, origin),
            fix=(f"strip {segment} from {count(n, 'key')}", "safe"),
            keys=hit,
        )


def underlined(key: str, segment: str, words: str) -> tuple[Line, ...]:
    """An example key with its segment underlined."""
    text = printable(key)
    at = column(text, printable(segment)) or 0
    width = len(printable(segment)) + 1
    if len(text) > SHOWN:
        text = text[: max(SHOWN, at + width)] + "..."
    # The underline is data, too: blanks up to the column, then carets.
    return Line(text), Line(f"{' ' * at}{'^' * width} {printable(words)}", "^")


class Envelope(Rule):
    """The state dict is one entry of a larger dict.

    What it means
        The file holds a training status, e.g. ``{"state_dict": ..., "optimizer": ..., "epoch": 12}``. The
        weights are one level down (or several).

    Why it matters
        ``model.load_state_dict(torch.load(path))`` sees the keys ``state_dict``, ``optimizer`` and
        ``epoch`` and finds none of the model's. With ``strict=False`` it succeeds and loads nothing.

    What to do
        Let the plan take the state dict out. In your own code: ``torch.load(path)["state_dict"]``.
    """

    code, name, severity = "CKD102", "envelope", "error"
    VALID = (Example({"a.weight": (2, 3)}, {"a.weight": (2, 3)}),)
    INVALID = (
        Example(
            {"a.weight": (2, 3)},
            {"a.weight": (2, 3)},
            path="state_dict",
            rest={"epoch": "int 12", "optimizer": "SGD-like, 1 group"},
        ),
    )

    def check(self, case: Case) -> Iterator[Diagnostic]:
        """Name the path and what lies beside it."""
        if not case.state_dict or case.question is not None:
            return
        path = case.state_dict
        beside = {p: "another state dict" for p in _paths(case) if p and p != path}
        beside |= dict(case.archive.rest)
        rows = [(path, case.source_note.partition(", ")[2]), *beside.items()]
        evidence = columns([(printable(p), printable(w)) for p, w in rows], "+" + " " * len(beside))
        yield self.finding(
            f"the state dict is the entry {quoted(path)} of the checkpoint",
            place=(case.file, case.archive.description),
            evidence=evidence,
            fix=(f"take the state dict at {quoted(path)}", "safe"),
        )


def _paths(case: Case) -> list[str]:
    return [sd.path for sd in case.archive.state_dicts]


class EnvelopeChoice(Rule):
    """Several state dicts of the checkpoint fit the model, and only you know which one is meant.

    What it means
        The file holds the weights more than once: raw and averaged (EMA), student and teacher,
        the best and the last epoch. Keys and shapes are the same, the values are not.

    Why it matters
        Each of them loads without an error. For inference one usually wants the EMA weights, to
        resume a training the raw ones; the wrong one costs accuracy silently.

    What to do
        Name the one you mean: ``--choose PATH`` (in Python ``decisions=["choose=PATH"]``).
    """

    code, name, severity = "CKD103", "envelope-choice", "error"
    VALID = (Example({"a.weight": (2, 3)}, {"a.weight": (2, 3)}, path="model"),)
    INVALID = (
        Example(
            {"a.weight": (2, 3)},
            {"a.weight": (2, 3)},
            path="state_dict",
            more={"state_dict_ema": {"a.weight": (2, 3)}},
        ),
    )

    def check(self, case: Case) -> Iterator[Diagnostic]:
        """Word the open question of the choice of a state dict."""
        questions = ([case.question] if case.question is not None else []) + case.questions("envelope")
        for question in questions:
            flags = [(f, w) for f, w in question.flags if shell_words(f)]
            flags = flags or [(flag("choose", p), f"load `{p}`") for p in question.sources]
            yield self.finding(
                printable(question.title),
                place=(case.file, case.archive.description),
                evidence=columns([_choice(case, f) for f, _ in flags], "-"),
                notes=[printable(n) for n in question.notes],
                helps=[Help(printable(f), printable(words)) for f, words in flags],
            )


def _choice(case: Case, chosen: str) -> tuple[str, str]:
    """What `--choose PATH` would take: a state dict of the file, or the keys below a prefix."""
    path = shell_words(chosen)[-1]
    trees = {sd.path: sd.tree for sd in case.archive.state_dicts}
    if path in trees:
        return printable(path), tree_words(trees[path])
    below = [k for k in case.source.specs if k.startswith(f"{path}.")] if case.source is not None else []
    return printable(f"{path}.**"), count(len(below), "key")


class ModelIsWrapped(Rule):
    """The model's own names carry a wrapper that the checkpoint does not have.

    What it means
        The model was already put into ``torch.nn.DataParallel``, ``torch.compile`` or a similar wrapper
        before loading; the file was saved from the bare network.

    Why it matters
        Every key of the model is missing and every key of the checkpoint is unexpected, although the
        networks are the same.

    What to do
        Let the plan add the segment, or load before wrapping: ``model.module.load_state_dict(...)``.
    """

    code, name, severity = "CKD104", "model-is-wrapped", "error"
    VALID = (
        Example({"a.weight": (2, 3)}, {"a.weight": (2, 3)}),
        Example({"module.a.weight": (2, 3)}, {"module.a.weight": (2, 3)}),
    )
    INVALID = (
        Example(
            {"a.weight": (2, 3), "a.bias": (2,)},
            {"module.a.weight": (2, 3), "module.a.bias": (2,)},
        ),
    )

    def check(self, case: Case) -> Iterator[Diagnostic]:
        """One finding a wrapper segment that the model adds."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for source, target in case.renames:
            segment = added_segment(source, target)
            if segment:
                groups.setdefault(segment, []).append((source, target))
        for segment, pairs in groups.items():
            target = pairs[0][1]
            who = case.target.tree.modules.get("", "")
            words = f"added by {who}" if who in WRAPPER_CLASSES else "not in the checkpoint"
            yield self.finding(
                f"the model's names carry {quoted(segment + '.')}, the checkpoint's do not",
                place=case.model_place(target),
                evidence=underlined(target, segment.partition(" ")[0], words),
                fix=(f"add {quoted(segment + '.')} to {count(len(pairs), 'key')}", "safe"),
                keys=[t for _, t in pairs],
            )


WRAPPER_CLASSES = frozenset(
    {
        "DataParallel",
        "DistributedDataParallel",
        "OptimizedModule",
        "FullyShardedDataParallel",
        "AveragedModel",
    }
)


class StrayValues(Rule):
    """The state dict itself also holds entries that are no tensors.

    What it means
        Somebody put a counter, a date or a configuration beside the tensors, without an envelope.

    Why it matters
        ``load_state_dict`` calls each of these an unexpected key and refuses the file.

    What to do
        Let the plan leave them out.
    """

    code, name, severity = "CKD105", "stray-values", "error"
    VALID = (Example({"a.weight": (2, 3)}, {"a.weight": (2, 3)}, path="model", rest={"epoch": "int 3"}),)
    INVALID = (Example({"a.weight": (2, 3)}, {"a.weight": (2, 3)}, rest={"epoch": "int 3"}),)

    def check(self, case: Case) -> Iterator[Diagnostic]:
        """List what lies beside the tensors of a bare state dict."""
        rest = case.archive.rest
        if case.state_dict != "" or not rest:
            return
        yield self.finding(
            f"the state dict also holds {count(len(rest), 'entry', 'entries')} that "
            f"{'is no tensor' if len(rest) == 1 else 'are no tensors'}",
            place=(case.file, case.archive.description),
            evidence=columns([(printable(k), printable(v)) for k, v in rest.items()], "-"),
            fix=("leave it out" if len(rest) == 1 else "leave them out", "safe"),
            keys=list(rest),
        )
