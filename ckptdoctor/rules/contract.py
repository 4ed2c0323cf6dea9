"""CKD7xx: the contract with checkpoints that people have. Found by `ckptdoctor check`."""

from __future__ import annotations

from collections.abc import Iterator

from ckptdoctor.diagnostics import Diagnostic
from ckptdoctor.rules.base import Case, Example, Rule

_ANY = (Example({"a.weight": (2, 3)}, {"a.weight": (2, 3)}),)


class ContractRule(Rule):
    """A finding about releases; one checkpoint and one model alone never have it."""

    VALID = _ANY

    def check(self, case: Case) -> Iterator[Diagnostic]:
        """Nothing: `ckptdoctor.contract` makes these findings."""
        yield from ()


class StaleLock(ContractRule):
    """The committed tree of a model is not what its code builds.

    What it means
        ``ckpt/<model>.tree`` holds the keys, shapes and dtypes of the model; the code has changed since.

    Why it matters
        The file is what reviewers see and what releases are compared with.

    What to do
        ``ckptdoctor lock`` writes it again; read the difference and commit it.
    """

    code, name, severity = "CKD701", "stale-lock", "error"


class MissingMigration(ContractRule):
    """Checkpoints of a supported release need a repair that is safe and not committed.

    What it means
        The model's keys have changed. One explanation of the change is left, and it keeps every value.

    Why it matters
        ``load_state_dict`` refuses the checkpoints that people have.

    What to do
        ``ckptdoctor migrate --write`` writes the plan to ``ckpt/migrations``; review it and commit it. With
        ``ckptdoctor.register_migrations(model, folder)`` old checkpoints load as before.
    """

    code, name, severity = "CKD702", "missing-migration", "error"


class BreakingChange(ContractRule):
    """Checkpoints of a supported release do not load, and no repair keeps all their values.

    What it means
        A shape has changed, a tensor has no counterpart, or more than one explanation is left.

    Why it matters
        People have such checkpoints, and the project promises that they load.

    What to do
        Change the model so that they load, or decide: ``ckptdoctor migrate --write --reinit 'fc.**'`` records
        an answer in a migration. If they shall not load any more, say so in ``[[tool.ckptdoctor.accept]]``
        with a reason, an owner and a date.
    """

    code, name, severity = "CKD703", "breaking-change", "error"


class RewrittenMigration(ContractRule):
    """The committed migrations are no unbroken chain any more.

    What it means
        A migration was edited, renamed or removed, does not do what it says, or two branches added one each.
        Every migration holds the digest of the one before, and ``head`` names the newest.

    Why it matters
        Checkpoints of older releases go through all of them.

    What to do
        Bring back what was committed and add a new migration instead. Of two with one number keep the one
        that was merged first, remove the other, and run ``ckptdoctor migrate --write`` again.
    """

    code, name, severity = "CKD704", "rewritten-migration", "error"


class DroppedRelease(ContractRule):
    """A release that was supported is not any more, or its tree was edited.

    What it means
        The commit that is compared with (``--against``) has the file in ``ckpt/releases``; this one lacks
        it, or holds another tree. A published checkpoint does not change.

    Why it matters
        Its checkpoints are not checked any more.

    What to do
        Bring the file back, or say in ``[[tool.ckptdoctor.accept]]`` why it is not supported any more.
    """

    code, name, severity = "CKD705", "dropped-release", "error"


class UnloadableArtifact(ContractRule):
    """A checkpoint of this repository does not load strictly into its model.

    What it means
        A file under ``artifacts`` has other keys, a wrapper's prefix, an optimizer's state, pickled code, or
        another dtype than the model.

    Why it matters
        It is about to be published, and whoever downloads it has to repair it.

    What to do
        ``ckptdoctor repair`` writes a plain file that loads strictly.
    """

    code, name, severity = "CKD706", "unloadable-artifact", "error"


class ToleratedDifference(ContractRule):
    """A difference passes only because every declared consumer ignores it.

    What it means
        Keys are missing or left over, and ``consumers`` names only loaders that take that without an error.

    Why it matters
        A tensor that nothing loads stays at its initial value, and nobody is told.

    What to do
        Nothing, if that is meant. Add ``"torch-strict"`` to ``consumers`` to have it checked.
    """

    code, name, severity = "CKD707", "tolerated-difference", "warning"


class ExpiredAccept(ContractRule):
    """An accepted finding is past its date.

    What it means
        The ``until`` of an entry of ``[[tool.ckptdoctor.accept]]`` is over; the entry counts no more.

    Why it matters
        Somebody meant to look again by then.

    What to do
        Ask its owner: mend what was accepted, or give it a new date.
    """

    code, name, severity = "CKD708", "expired-accept", "error"


class UnusedAccept(ContractRule):
    """An accepted finding is not there any more.

    What it means
        No finding fits an entry of ``[[tool.ckptdoctor.accept]]``.

    Why it matters
        It would hide the next one.

    What to do
        Remove the entry.
    """

    code, name, severity = "CKD709", "unused-accept", "warning"


class SameVariants(ContractRule):
    """Two variants of a model have the same tree.

    What it means
        Their arguments differ and their keys, shapes and dtypes do not.

    Why it matters
        The second one checks nothing; often an argument does not reach the model.

    What to do
        Remove one of them, or correct its arguments.
    """

    code, name, severity = "CKD710", "same-variants", "error"


class ForwardBreak(ContractRule):
    """A checkpoint of HEAD's model does not load into a released model.

    What it means
        ``compatibility`` is ``forward`` or ``full``, and released code cannot take what this code saves. Code
        that is released already runs no new migration.

    Why it matters
        Whoever has not updated cannot use new checkpoints.

    What to do
        Change the model so that they load, or accept it with a reason, an owner and a date.
    """

    code, name, severity = "CKD711", "forward-break", "error"
