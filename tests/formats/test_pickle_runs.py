"""Tensors that a scan skips, alone or many together, leave what a look at each of their opcodes leaves."""

import pickle
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from ckptdoctor.errors import ReadError
from ckptdoctor.formats import pickle_records, unpickle
from ckptdoctor.formats.inert import StorageRecord, TensorRecord, TensorRows
from ckptdoctor.formats.pickle_scan import MARK, Scan
from ckptdoctor.formats.source import window_of_bytes
from ckptdoctor.formats.unpickle import Names, Storages


@dataclass
class Writer:
    """Writes tensors as the pickler of torch.save does, with any way of numbering the memo."""

    way: str  # "puts", "memoize" or "nothing"
    at: int = 0  # the next index
    out: bytearray = field(default_factory=bytearray)
    known: dict[bytes, int] = field(default_factory=dict)

    def put(self, opcodes: bytes) -> None:
        self.out += opcodes
        if self.way == "memoize":
            self.out += b"\x94"
        elif self.way == "puts":
            self.out += b"q%c" % self.at if self.at < 256 else b"r" + struct.pack("<I", self.at)
        self.at += self.way != "nothing"

    def shared(self, opcodes: bytes) -> None:
        """What is written once."""
        index = self.known.get(opcodes)
        if index is not None:
            self.out += b"h%c" % index if index < 256 else b"j" + struct.pack("<I", index)
            return
        if self.way == "nothing":  # as our own writer: what is taken from the memo is put there
            index = len(self.known)
            self.out += opcodes + (b"q%c" % index)
            self.known[opcodes] = index
            return
        self.known[opcodes] = self.at
        self.put(opcodes)

    def text(self, text: bytes) -> None:
        short = self.way == "memoize" and len(text) < 256
        self.put((b"\x8c%c" % len(text) if short else b"X" + struct.pack("<I", len(text))) + text)

    def numbers(self, numbers: list[int]) -> None:
        spelled = b"".join(map(number, numbers))
        if not numbers:
            self.out += b")"
        elif len(numbers) < 4:
            self.put(spelled + bytes([0x84 + len(numbers)]))
        else:
            self.put(b"(" + spelled + b"t")

    def tensor(
        self, storage: bytes, kind: bytes, device: bytes, size: list[int], form: dict[str, Any]
    ) -> None:
        self.shared(b"ctorch._utils\n_rebuild_tensor_v2\n")
        self.out += b"(("
        self.shared(b"X\x07\0\0\0storage")
        self.shared(b"ctorch\n" + kind + b"\n")
        if form.get("tied"):
            self.shared(b"X" + struct.pack("<I", len(storage)) + storage)
        else:
            self.text(storage)
        self.shared(b"X" + struct.pack("<I", len(device)) + device)
        self.out += number(form.get("numel", 70_000)) + (b"N" if form.get("none") else b"")
        self.put(b"t")
        self.out += b"Q" + number(form.get("offset", 0))
        self.numbers(size)
        self.numbers(form.get("stride", size))
        self.out += b"\x88" if form.get("grad") else b"\x89"
        self.shared(b"ccollections\nOrderedDict\n")
        self.put(b")R")
        if form.get("metadata"):
            self.shared(b"X\x04\0\0\0meta")
        self.put(b"t")
        self.put(b"R")


def number(n: int) -> bytes:
    if 0 <= n < 256:
        return b"K%c" % n
    return b"M" + struct.pack("<H", n) if 0 <= n < 65536 else b"J" + struct.pack("<i", n)


ends = st.sampled_from([b"q.weight", b"k.weight", b"norm.bias", b"w", b"\xd0\xba.bias", b"\n", b"h\x02(("])
forms = st.fixed_dictionaries(
    {},
    optional={
        "numel": st.sampled_from([0, 1, 255, 256, 65_535, 65_536, 2**31 - 1]),
        "offset": st.sampled_from([0, 5, 300, 70_000]),
        "stride": st.lists(st.integers(0, 2**20), max_size=12),
        "grad": st.booleans(),
        "none": st.sampled_from([False, False, False, True]),
        "metadata": st.sampled_from([False, False, False, True]),
        "tied": st.sampled_from([False, False, False, True]),
    },
)
sizes = st.lists(st.sampled_from([0, 1, 4, 300, 70_000]), max_size=12)
layers = st.lists(
    st.tuples(
        ends,
        st.sampled_from([b"FloatStorage", b"HalfStorage", b"LongStorage"]),
        st.sampled_from([b"cpu", b"cuda:1"]),
        sizes,
        forms,
    ),
    min_size=1,
    max_size=4,
)


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, str]:
    """Layers that repeat, in batches, with odd things between, and what numbers the memo."""
    writer = Writer(draw(st.sampled_from(["puts", "puts", "memoize", "nothing"])))
    writer.put(b"\x80\x02}")
    if draw(st.booleans()) and writer.way == "puts":
        for i in range(draw(st.integers(0, 260))):  # until the indices become longer
            writer.put(number(i))
            writer.out += b"0"
    writer.out += b"("
    layer, count = draw(layers), 0
    for i in range(draw(st.integers(1, 14))):
        for j, (end, kind, device, size, form) in enumerate(layer):
            writer.text(b"layer.%d.%d." % (i, j) + end)
            writer.tensor(b"%d" % count, kind, device, size, form)
            count += 1
        if draw(st.integers(0, 19)) == 0:
            writer.out += draw(st.sampled_from([b"u(", b"K\x01K\x02", b"X\x01\0\0\0a]", b"u(X\x01\0\0\0b)"]))
            writer.out += draw(st.sampled_from([b"", b"", b"K\x05h%c" % draw(st.integers(0, 255))]))
    writer.out += b"u."
    return bytes(writer.out), writer.way


@st.composite
def mutants(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(streams())[0])
    for _ in range(draw(st.sampled_from([0, 1, 1, 2]))):
        at = draw(st.integers(0, len(data) - 1))
        change = draw(st.sampled_from(["letter", "bit", "out", "in", "next"]))
        if change == "letter":
            data[at] = draw(st.sampled_from(list(b"XrqhjK(tuR}Q\x94.\x85\x8c0")))
        elif change == "bit":
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif change == "next":
            data[at] = (data[at] + draw(st.sampled_from([1, 255]))) % 256
        elif change == "out":
            del data[at : at + draw(st.sampled_from([1, 2, 5]))]
        else:
            data[at:at] = draw(st.sampled_from([b"q\x07", b"h\x07", b"(", b"0", b"r\0\x01\0\0", b"K\x01"]))
    return bytes(data)


@contextmanager
def patched(*changes: tuple[Any, str, Any]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for change in changes:
            patch.setattr(*change)
        yield


NOTHING = ((Scan, "_run_skipped", lambda *_: False), (Scan, "_record_skipped", lambda *_: False))
ALONE = ((Scan, "_run_skipped", lambda *_: False),)
STANZAS = ((pickle_records, "LARGE", 0), (pickle_records, "SHORTEST", 2))


def left(data: bytes) -> tuple[Any, Scan]:
    """What a scan says at its end, and the scan."""
    scan = Scan(window_of_bytes(data))
    try:
        scan.run()
    except (pickle.UnpicklingError, EOFError) as error:
        return (type(error), str(error)), scan
    marks = [i for i, weight in enumerate(scan._stack) if weight == MARK]
    numbered = scan._next, scan._count, scan._puts, scan._memoized
    return (scan.end, len(scan._stack), marks, scan._marks, numbered), scan


@given(mutants())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_is_skipped_leaves_what_its_opcodes_leave(data: bytes) -> None:
    with patched(*NOTHING):
        expected, _ = left(data)
    event("read" if isinstance(expected[0], int) else "refused")
    for how in ((), ALONE, STANZAS):
        with patched(*how):
            found, scan = left(data)
        assert found == expected
        event(f"stanzas: {scan.records._stanza is not None}")


def shown(value: Any, depth: int = 0) -> Any:
    """An unpickled object as plain values, not all of one that contains itself."""
    if depth > 8:
        return "..."
    if isinstance(value, TensorRows):
        value = value.records()
    if isinstance(value, dict):
        state = getattr(value, "state", None)
        return [(shown(k, depth + 1), shown(v, depth + 1)) for k, v in value.items()], shown(state, depth + 1)
    if type(value) is TensorRecord:
        parts = [value.storage, value.offset, value.size, value.stride, value.more]
        return [shown(part, depth + 1) for part in parts]
    if isinstance(value, StorageRecord):
        return value.key, value.dtype, value.device, value.numel, value.nbytes
    if isinstance(value, list | tuple):
        return [shown(part, depth + 1) for part in value]
    return value if isinstance(value, str | int | bytes) else type(value).__name__


def unpickled(data: bytes) -> tuple[Any, bool]:
    """The object and its storages, or what is wrong, and whether anything was read by rows."""
    names, storages = Names(), Storages()
    try:
        root = unpickle.unpickle(window_of_bytes(data), names, storages, path="file", what="it")
    except ReadError as error:
        return str(error), False
    found = {key: shown(record) for key, record in storages.everything().items()}
    keys, tags, kinds, nbytes = storages.columns()
    columns = {key: (*tags[kind], size) for key, kind, size in zip(keys, kinds, nbytes, strict=True)}
    assert columns == {key: (dtype, device, size) for key, dtype, device, _, size in found.values()}
    return (shown(root), found, names.listed()), bool(storages.rows)


@given(mutants())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_by_rows_is_what_the_unpickler_says(data: bytes) -> None:
    with patched(*NOTHING):
        expected, _ = unpickled(data)
    for how in (((unpickle, "FEW", 1),), ((unpickle, "FEW", 1), *STANZAS)):
        with patched(*how):
            found, by_rows = unpickled(data)
        event(f"by rows: {by_rows}")
        assert found == expected


def test_stanzas_are_found() -> None:
    writer = Writer("puts")
    writer.out += b"}("
    for i in range(900):
        for name in (b"weight", b"bias"):
            writer.text(b"blocks.%d.norm." % i + name)
            writer.tensor(b"%d" % (2 * i + (name == b"bias")), b"FloatStorage", b"cpu", [2], {})
    writer.out += b"u."
    made: list[int] = []
    stanza = pickle_records.Recent.stanza

    def counted(recent: pickle_records.Recent, data: bytes) -> pickle_records.Stanza:
        found = stanza(recent, data)
        made.append(len(found.kinds))
        return found

    with patched((pickle_records.Recent, "stanza", counted)):
        found, scan = left(bytes(writer.out))
    with patched(*NOTHING):
        assert left(bytes(writer.out))[0] == found
    assert [len(run.kinds) for _, run in scan.runs] == [1799]
    assert made == [8] * len(made) and 0 < len(made) <= 8  # one for each length of texts
