"""CKD4xx: the file. Found by the readers of `formats/`; here is what each finding means."""

from __future__ import annotations

from collections.abc import Iterator

from ckptdoctor.diagnostics import Diagnostic
from ckptdoctor.formats.base import PLAIN_FORMATS
from ckptdoctor.keys import printable
from ckptdoctor.rules.base import Case, Example, Rule
from ckptdoctor.rules.words import columns, count


class FileRule(Rule):
    """A finding of a file's reader: passed on as it is."""

    def check(self, case: Case) -> Iterator[Diagnostic]:
        """Those of the archive's diagnostics that have this code."""
        yield from (d for d in case.archive.diagnostics if d.code == self.code)


class UnknownGlobal(FileRule):
    """The pickle inside the file names a class or function outside the known-harmless ones.

    What it means
        The file holds an ``argparse.Namespace``, a configuration object, a numpy scalar or a class of the
        author's program. ckptdoctor neither imports nor calls it; it becomes an inert stand-in.

    Why it matters
        ``torch.load`` refuses such a file since torch 2.6 (``weights_only=True``); with
        ``weights_only=False`` it runs code that the file chooses.

    What to do
        Let ckptdoctor take the tensors out. Do not pass ``weights_only=False`` for a file whose origin you do
        not know.
    """

    code, name, severity = "CKD401", "unknown-global", "warning"
    VALID = (Example({"a.weight": (2, 3)}, {"a.weight": (2, 3)}),)
    INVALID = (Example({"a.weight": (2, 3)}, {"a.weight": (2, 3)}, diagnostics=(("CKD401", "warning"),)),)


class PickledModule(FileRule):
    """The file holds a whole pickled module instead of a state dict.

    What it means
        ``torch.save(model, path)`` was used: the file refers to the classes of the program that made it.

    Why it matters
        It loads only where the same code can be imported from the same place, and loading runs that code.

    What to do
        Let ckptdoctor harvest the parameters and buffers; the classes need not exist. Save
        ``model.state_dict()`` next time.
    """

    code, name, severity = "CKD402", "pickled-module", "warning"
    VALID = (Example({"a.weight": (2, 3)}, {"a.weight": (2, 3)}),)
    INVALID = (Example({"a.weight": (2, 3)}, {"a.weight": (2, 3)}, diagnostics=(("CKD402", "warning"),)),)


class StorageBloat(FileRule):
    """Tensors are small views of large storages, all of which is in the file.

    What it means
        A slice was saved without ``.clone()``: torch saves the whole storage behind it.

    Why it matters
        The file is larger than its weights, sometimes by orders of magnitude.

    What to do
        ``ckptdoctor repair`` writes a file that holds only what the tensors show.
    """

    code, name, severity = "CKD403", "storage-bloat", "note"
    VALID = (Example({"a.weight": (2, 3)}, {"a.weight": (2, 3)}),)
    INVALID = (Example({"a.weight": (2, 3)}, {"a.weight": (2, 3)}, diagnostics=(("CKD403", "note"),)),)


class DeviceTag(FileRule):
    """Tensors were saved on another device than the CPU.

    What it means
        The file remembers ``cuda:0`` or the like for each tensor.

    Why it matters
        ``torch.load`` without ``map_location`` puts them back there, on every process the same device, and
        fails where there is none.

    What to do
        ``torch.load(path, map_location="cpu")``; see also CKD304 foreign-device.
    """

    code, name, severity = "CKD404", "device-tag", "note"
    VALID = (Example({"a.weight": (2, 3)}, {"a.weight": (2, 3)}),)
    INVALID = (Example({"a.weight": (2, 3)}, {"a.weight": (2, 3)}, diagnostics=(("CKD404", "note"),)),)

    def check(self, case: Case) -> Iterator[Diagnostic]:
        """Not said twice: CKD304 speaks of devices that this machine lacks."""
        if not case.foreign:
            yield from super().check(case)


class BadCrc(FileRule):
    """The bytes of a tensor do not have the checksum that the file states.

    What it means
        The file was damaged on a disk or on its way.

    Why it matters
        The tensor has wrong values, and nothing else tells.

    What to do
        Get the file again. ckptdoctor does not load it.
    """

    code, name, severity = "CKD405", "bad-crc", "error"
    VALID = (Example({"a.weight": (2, 3)}, {"a.weight": (2, 3)}),)
    INVALID = (Example({"a.weight": (2, 3)}, {"a.weight": (2, 3)}, diagnostics=(("CKD405", "error"),)),)


class NonFinite(FileRule):
    """Tensors hold NaN or infinite values.

    What it means
        The training diverged, or the file is damaged.

    Why it matters
        The network's outputs become NaN; a single value is enough.

    What to do
        Use an earlier checkpoint.
    """

    code, name, severity = "CKD406", "non-finite", "warning"
    VALID = (Example({"a.weight": (2, 3)}, {"a.weight": (2, 3)}),)
    INVALID = (Example({"a.weight": (2, 3)}, {"a.weight": (2, 3)}, diagnostics=(("CKD406", "warning"),)),)


class NotAStateDict(Rule):
    """The file holds no state dict.

    What it means
        There may be an optimizer's state, a list of tensors or a configuration inside, but no mapping
        from names to tensors that a model could load.

    Why it matters
        There is nothing to load.

    What to do
        Look what is inside: ``ckptdoctor inspect FILE``. Often the weights are in a file beside it.
    """

    code, name, severity = "CKD407", "not-a-state-dict", "error"
    VALID = (Example({"a.weight": (2, 3)}, {"a.weight": (2, 3)}),)
    INVALID = (Example({}, {"a.weight": (2, 3)}, rest={"optimizer": "Adam-like, 2 groups"}),)

    def check(self, case: Case) -> Iterator[Diagnostic]:
        """Say what there is in its place."""
        if any(len(sd.tree) for sd in case.archive.state_dicts):
            return
        yield self.finding(
            "the checkpoint holds no state dict",
            place=(case.file, case.archive.description),
            evidence=columns([(printable(k), printable(v)) for k, v in case.archive.rest.items()], "-"),
            why=_why(case.archive.tensors),
        )


def _why(tensors: int) -> str:
    if not tensors:
        return "there is not one tensor inside"
    return f"{count(tensors, 'tensor')} inside, none in a mapping of names to tensors"


class OtherContainer(Rule):
    """The file is sound, and ``torch.load`` does not give its state dict as one dict of tensors.

    What it means
        A checkpoint in several shards with an index, a TorchScript archive, a file of torch 0.1, a dict of
        numpy arrays: the tensors are there, in a container that the usual two lines of code do not open.

    Why it matters
        ``model.load_state_dict(torch.load(path))`` fails with an error about the file, although nothing is
        wrong with the weights.

    What to do
        ``ckptdoctor repair MODEL CKPT -o OUT`` writes one plain file; ``auto_load`` reads it as it is.
    """

    code, name, severity = "CKD408", "other-container", "error"
    VALID = (Example({"a.weight": (2, 3)}, {"a.weight": (2, 3)}),)
    INVALID = (Example({"a.weight": (2, 3)}, {"a.weight": (2, 3)}, format="safetensors-index"),)

    def check(self, case: Case) -> Iterator[Diagnostic]:
        """One finding a file."""
        if case.archive.format in PLAIN_FORMATS or case.source is None:
            return
        files = len(case.archive.files)
        yield self.finding(
            f"torch.load does not give this as one dict of tensors: {printable(case.archive.description)}",
            place=(case.file, f"{count(files, 'file')}, {count(len(case.source), 'tensor')}"),
            fix=("write its tensors to one plain file", "safe"),
        )
