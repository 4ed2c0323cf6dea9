"""Large files are read by columns; that must give what reading one by one gives, for good files and bad ones."""

import io
import random
import struct
import zipfile
from array import array
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn, optim

from ckptdoctor.errors import ReadError
from ckptdoctor.formats import (
    open_checkpoint,
    pickle_records,
    pickle_templates,
    unpickle,
    zip_directory,
    zip_members,
)
from ckptdoctor.formats.base import Archive
from ckptdoctor.formats.blobs import Files
from ckptdoctor.formats.envelope import open_envelope
from ckptdoctor.formats.lazy import LazySpecs
from ckptdoctor.formats.pickle_scan import Scan
from ckptdoctor.formats.rows import added, any_above
from ckptdoctor.formats.source import FileSource, window_of_bytes
from ckptdoctor.formats.unpickle import Storages
from ckptdoctor.formats.views import Views
from ckptdoctor.formats.whole import Whole, whole_tensors
from ckptdoctor.formats.zip_directory import Directory
from ckptdoctor.formats.zip_members import Members
from ckptdoctor.trees import ParamTree
from ckptdoctor.writers import Contents, Piece, write_contents

COLUMNS = (
    (unpickle, "FEW", 1),
    (pickle_records, "LARGE", 0),
    (pickle_records, "SHORTEST", 2),
    (zip_members, "FEW", 2),
)


@contextmanager
def by_columns() -> Iterator[None]:
    """Small files are read as large ones are."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in COLUMNS:
            patch.setattr(module, name, value)
        yield


@contextmanager
def one_by_one() -> Iterator[None]:
    """Nothing is read by columns, no opcode is skipped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scan, "_run_skipped", lambda *_: False)
        patch.setattr(Scan, "_record_skipped", lambda *_: False)
        patch.setattr(zip_members, "FEW", 1 << 60)
        patch.setattr(Views, "plain_specs", lambda *_: None)
        patch.setattr(Directory, "_offsets", lambda *_: None)
        patch.setattr(Members, "numbers", lambda *_: None)
        yield


@contextmanager
def by_templates() -> Iterator[None]:
    """Records are skipped, but the unpickler sees all of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unpickle, "FEW", 1 << 60)
        yield


def read(path: Path, how: Callable[[], Any]) -> Archive | str:
    with how():
        try:
            return open_checkpoint(path)
        except ReadError as error:
            return type(error).__name__


def told(archive: Archive | str) -> Any:
    """Everything that an archive says."""
    if isinstance(archive, str):
        return archive
    dicts = [
        (sd.path, sd.note, list(sd.tree.specs.items()), sd.tree.versions, sd.tree.extra, sd.recipes)
        for sd in archive.state_dicts
    ]
    plain = (
        archive.rest,
        archive.tensors,
        archive.globals,
        archive.hints,
        archive.diagnostics,
        archive.facts,
    )
    content = archive.content.value if archive.content is not None else None
    return dicts, sorted(archive.storages.items()), plain, repr(content), whole(archive)


def whole(archive: Archive) -> list[dict[str, Whole]]:
    """The tensors that can be mapped as they are."""
    users = Counter(spec.storage for sd in archive.state_dicts for spec in sd.tree.specs.values())
    return [whole_tensors(archive, sd, users, "little") for sd in archive.state_dicts]


def assert_alike(path: Path) -> None:
    expected = told(read(path, one_by_one))
    assert told(read(path, by_columns)) == told(read(path, by_templates)) == expected


def lazily(archive: Archive | str) -> bool:
    assert isinstance(archive, Archive)
    return any(isinstance(sd.tree.specs, LazySpecs) for sd in archive.state_dicts)


shapes = st.sampled_from([(), (0,), (1,), (3,), (2, 3), (300,), (1, 70_000), (2, 1, 3, 2), (1,) * 6])
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool])
# Some letters are opcodes, too, and stand where a text ends.
names = st.text("abc.0rqhKXu)\u00e9", min_size=1, max_size=30)


def make(shape: tuple[int, ...], dtype: torch.dtype, how: str) -> Tensor:
    tensor = torch.zeros(shape, dtype=dtype)
    if how == "view" and len(shape) > 1:
        return tensor.transpose(0, 1)
    if how == "slice":
        return torch.zeros(2, *shape, dtype=dtype)[1]
    if how == "param" and dtype.is_floating_point:
        return nn.Parameter(tensor)
    return tensor


made = st.builds(make, shapes, dtypes, st.sampled_from(["", "", "", "view", "slice", "param"]))
state_dicts = st.dictionaries(names, made, min_size=1, max_size=60)


@given(
    state=state_dicts,
    form=st.sampled_from(["plain", "ordered", "envelope", "status", "twice", "tied", "list", "numbers"]),
    protocol=st.sampled_from([2, 2, 2, 4]),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_by_columns_and_one_by_one_are_the_same(
    state: dict[str, Tensor], form: str, protocol: int, tmp_path: Path
) -> None:
    many = {
        f"filler.{i}": torch.zeros(1) for i in range(40)
    }  # the memo's indices need two bytes from here on
    state = {**many, **state}
    whole: Any = state
    if form == "ordered":
        whole = OrderedDict(state)
        whole._metadata = OrderedDict({"": {"version": 1}, "a": {"version": 2}})
    elif form == "envelope":
        whole = {
            "state_dict": state,
            "epoch": 3,
            "optimizer": {"state": {}, "param_groups": []},
            "words": ["a"],
        }
    elif form == "status":  # of an optimizer, as far as its keys say
        whole = {"optimizer": {"state": {0: state, 1: dict(state)}, "param_groups": []}, "state_dict": many}
    elif form == "twice":
        whole = {"model": state, "ema": state, "list": [state]}
    elif form == "tied":
        whole = {**state, "tie": state["filler.39"], "view": state["filler.38"][:0]}
    elif form == "list":
        whole = ["x", *(part for item in state.items() for part in item)]
    elif form == "numbers":
        whole = {**state, "lr": 0.1, "name": "text"}
    path = tmp_path / "file.pth"
    torch.save(whole, path, pickle_protocol=protocol)
    assert_alike(path)
    torch.save(whole, path, pickle_protocol=protocol, _use_new_zipfile_serialization=False)
    assert_alike(path)


def large(count: int = 3000) -> dict[str, Tensor]:
    values = torch.randn(count, 6)
    return {f"blocks.{i // 4}.part{i % 4}.weight": values[i].clone().reshape(2, 3) for i in range(count)}


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "big.pth"
    torch.save(large(), path)
    return path


def test_a_large_file_is_read_by_columns(big: Path) -> None:
    archive = open_checkpoint(big)
    assert lazily(archive)
    specs = archive.state_dicts[0].tree.specs
    assert list(specs) == list(large()) and len(specs) == 3000
    assert specs["blocks.700.part2.weight"].shape == (2, 3) and "nothing" not in specs
    assert specs == dict(specs) and dict(specs) == specs
    assert told(archive) == told(read(big, one_by_one))
    assert len(whole(archive)[0]) == 3000


@pytest.mark.parametrize("shared", [False, True])
def test_a_tree_of_columns_says_what_a_tree_of_specs_says(tmp_path: Path, shared: bool) -> None:
    state = large()
    if shared:  # two tensors over one storage, and one tensor under two names
        keys = list(state)
        state[keys[5]] = state[keys[4]].view(-1)[:2]
        state[keys[9]] = state[keys[8]]
    torch.save(state, tmp_path / "m.pth")
    tree = open_checkpoint(tmp_path / "m.pth").state_dicts[0].tree
    plain = ParamTree(dict(open_checkpoint(tmp_path / "m.pth").state_dicts[0].tree.specs.items()))
    assert (tree.ties, tree.shapes, tree.dtypes) == (plain.ties, plain.shapes, plain.dtypes)
    assert (tree.devices, tree.digest) == (plain.devices, plain.digest)
    assert len(tree.ties) == shared


def test_the_envelope_of_a_large_file_can_be_kept(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": large()}, tmp_path / "last.pth")
    archive = open_checkpoint(tmp_path / "last.pth")
    envelope = open_envelope(archive, archive["state_dict"])
    assert lazily(archive) and envelope is not None
    assert len(envelope.node) == 3000 and envelope.kept == {}
    assert b"epoch" in envelope.written(lambda: b"N", lambda _: None)[:60]


def test_a_training_status_is_read_by_columns(tmp_path: Path) -> None:
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(900)))
    optimizer = optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "last.pth")
    archive = open_checkpoint(tmp_path / "last.pth")
    assert lazily(archive)
    assert told(archive) == told(read(tmp_path / "last.pth", one_by_one))


def test_tensors_without_dimensions_are_in_the_runs(tmp_path: Path) -> None:
    """Their sizes are the one thing in a record that is not put into the memo."""
    torch.save(nn.Sequential(*(nn.BatchNorm1d(2) for _ in range(60))).state_dict(), tmp_path / "norms.pth")
    pickle, _ = parts(tmp_path / "norms.pth")
    scan = Scan(window_of_bytes(pickle))
    scan.run()
    assert sum(len(run.kinds) for _, run in scan.runs) == 300 - 2  # those that name their classes
    assert_alike(tmp_path / "norms.pth")


def parts(path: Path) -> tuple[bytes, dict[str, bytes]]:
    """data.pkl, and all other members."""
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    pickle = next(name for name in members if name.endswith("data.pkl"))
    return members.pop(pickle), {**members, pickle: b""}


def rewritten(path: Path, pickle: bytes, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members.items():
            file.writestr(name, pickle if name.endswith("data.pkl") else data)


def save_ours(state: dict[str, Tensor], path: Path) -> None:
    """As a repair writes it: nothing is put into the memo that nobody takes from it."""
    pieces = {
        key: Piece(tuple(value.shape), "float32", make=lambda value=value: value)
        for key, value in state.items()
    }
    write_contents(Contents(pieces), path, Files())


def test_a_large_file_of_ours_is_read_by_columns(tmp_path: Path) -> None:
    save_ours(large(6000), tmp_path / "ours.pth")
    pickle, _ = parts(tmp_path / "ours.pth")
    scan = Scan(window_of_bytes(pickle))
    scan.run()
    assert sum(len(run.kinds) for _, run in scan.runs) > 5990
    assert_alike(tmp_path / "ours.pth")


@pytest.mark.parametrize("protocol", [2, 4])
def test_most_records_of_a_small_file_are_like_one_before(protocol: int, tmp_path: Path) -> None:
    torch.save(large(60), tmp_path / "small.pth", pickle_protocol=protocol)
    pickle, _ = parts(tmp_path / "small.pth")
    scan = Scan(window_of_bytes(pickle))
    made: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        record = pickle_templates._Draft.record
        patch.setattr(pickle_templates._Draft, "record", lambda draft: made.append(record(draft)))
        scan.run()
    # All but the first, which names its classes.
    assert [len(run.kinds) for _, run in scan.runs] == ([59] if protocol == 2 else [])
    assert len(made) == (1 if protocol == 2 else 2)  # keys of one digit, and of two


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("save", [torch.save, save_ours], ids=["theirs", "ours"])
def test_a_damaged_pickle_gives_the_same_either_way(save: Any, seed: int, tmp_path: Path) -> None:
    dice = random.Random(seed)
    save(large(60), tmp_path / "good.pth")
    pickle, members = parts(tmp_path / "good.pth")
    data = bytearray(pickle)
    for _ in range(dice.choice([1, 1, 2])):
        at = dice.randrange(len(data))
        data[at] = dice.choice([data[at] ^ 1 << dice.randrange(8), dice.choice(b"hjqrX(tu.}QR\x00\x01\x85")])
    rewritten(tmp_path / "bad.pth", bytes(data), members)
    assert_alike(tmp_path / "bad.pth")


@pytest.mark.parametrize("seed", range(60))
def test_a_damaged_zip_gives_the_same_either_way(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice = random.Random(seed)
    monkeypatch.setattr(zip_directory, "NEAR", dice.choice([0, zip_directory.NEAR]))
    torch.save(large(40), tmp_path / "bad.pth")
    data = bytearray((tmp_path / "bad.pth").read_bytes())
    start = data.index(b"PK\x01\x02")
    headers = [i for i in range(start) if data[i : i + 4] == b"PK\x03\x04"]
    at = dice.choice([dice.randrange(start, len(data)), dice.choice(headers) + dice.randrange(50)])
    data[at] ^= 1 << dice.randrange(8)
    (tmp_path / "bad.pth").write_bytes(data)
    assert_alike(tmp_path / "bad.pth")


def test_a_memo_index_that_a_run_overwrites_is_not_read_before_it(tmp_path: Path) -> None:
    """The run is cut out for the unpickler, so whatever refers into it has to see it whole."""
    torch.save(large(60), tmp_path / "good.pth")
    pickle, members = parts(tmp_path / "good.pth")
    last = struct.unpack("<I", pickle[pickle.rindex(b"r") + 1 :][:4])[0]  # the last tensor of all
    early = b"X\x01\0\0\0yr" + struct.pack("<I", last) + b"0"  # put there first, and popped
    again = b"X\x05\0\0\0again" + b"j" + struct.pack("<I", last)
    assert pickle.startswith(b"\x80\x02") and pickle.endswith(b"u.")
    rewritten(tmp_path / "bad.pth", b"\x80\x02" + early + pickle[2:-2] + again + b"u.", members)
    archive = read(tmp_path / "bad.pth", by_columns)
    assert isinstance(archive, Archive)
    tree = archive.state_dicts[0].tree
    assert tree["again"] == tree["blocks.14.part3.weight"]
    assert_alike(tmp_path / "bad.pth")


def test_a_long_key_whose_length_lies_is_not_skipped() -> None:
    """A run must see the opcodes that the unpickler sees."""
    buffer = io.BytesIO()
    torch.save(large(60), buffer)
    with zipfile.ZipFile(buffer) as file:
        pickle = file.read("archive/data.pkl")
    at = pickle.rindex(b"X\x16\0\0\0blocks.14.part3.weight")
    with by_columns():
        good, bad = (
            Scan(window_of_bytes(pickle)),
            Scan(window_of_bytes(pickle[: at + 1] + b"\x15" + pickle[at + 2 :])),
        )
        good.run()
        assert sum(len(run.kinds) for _, run in good.runs) > 20
        with pytest.raises(Exception, match=r"opcode|takes|mark"):
            bad.run()


@pytest.mark.parametrize("byte", [b"\xff", b"\xc3", b"\n", b"\0"])
def test_a_key_that_is_no_printable_text_is_left_to_the_unpickler(byte: bytes, tmp_path: Path) -> None:
    torch.save(large(60), tmp_path / "good.pth")
    pickle, members = parts(tmp_path / "good.pth")
    at = pickle.rindex(b"blocks.14.part3.weight")
    rewritten(tmp_path / "bad.pth", pickle[:at] + byte + pickle[at + 1 :], members)
    assert_alike(tmp_path / "bad.pth")


def test_columns_of_numbers_of_any_size_are_added_and_compared() -> None:
    small, large = array("Q", [0, 5, (1 << 55) - 1]), array("Q", [1, 5, 1 << 55])
    assert added(small, large) == array("Q", [1, 10, (1 << 56) - 1])
    assert not any_above(small, large) and any_above(large, small) and not any_above(small, small)
    huge = array("Q", [0, 0, (1 << 64) - 1])
    assert added(small, huge) is None  # the sum may need more than 64 bits
    assert any_above(huge, small) and not any_above(array("Q", [0, 0, 9]), huge)
    assert added(array("Q"), array("Q")) == array("Q") and not any_above(array("Q"), array("Q"))
    many = array("Q", range(10_000))  # more than one piece
    assert added(many, many) == array("Q", range(0, 20_000, 2)) and any_above(many[1:], many[:-1])


def test_storages_in_rows_and_alone_are_one_table(big: Path) -> None:
    archive = open_checkpoint(big)
    assert len(archive.storages) == 3000
    assert {spec.storage for spec in archive.state_dicts[0].tree.specs.values()} == set(archive.storages)
    assert Storages().columns() == ([], [], [], [])
    assert zip_directory.MANY > zip_members.FEW


def test_entries_that_have_to_be_read_alone_are_tried_together_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each used to try again with all behind it, which took longer with their square (beyond 4 GB, say)."""
    names = [f"archive/data/\u00e9{i:04}" for i in range(400)]
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w") as made:
        for i, name in enumerate(names):
            made.writestr(name, bytes([i % 256]) * i)
    tried, plain = [], Members._plain
    monkeypatch.setattr(Members, "_plain", lambda self, *a: tried.append(a) or plain(self, *a))
    with FileSource(str(file)) as source:
        found = Directory(source).members
        assert list(found) == names
        assert [found[name].size for name in names] == list(range(400))
    assert len(tried) == 1


FAR = struct.Struct("<2HQ")


def entry(name: bytes, size: int, header: int, extra: bytes, comment: bytes = b"") -> bytes:
    """A member of a central directory, stored."""
    lengths = len(name), len(extra), len(comment)
    fields = (b"PK\x01\x02", 0, 0, 0x800, 0, 0, 0, 7, size, size, *lengths, 0, 0, 0, header)
    return zip_members.CENTRAL.pack(*fields) + name + extra + comment


def members(data: bytes, count: int) -> Any:
    try:
        found = Members(data, count, ValueError)
    except ValueError as error:
        return str(error)
    return [found[name] for name in found]


@settings(deadline=None)
@given(
    odd=st.dictionaries(
        st.integers(0, 39),
        st.sampled_from(["near", "sizes", "other field", "short", "behind another", "comment", "marked"]),
        max_size=4,
    ),
    start=st.sampled_from([1 << 32, (1 << 32) - 100, (1 << 40) + 0xFFFFFFFF]),
)
def test_places_beyond_4_gb_are_the_same_either_way(odd: dict[int, str], start: int) -> None:
    rows = []
    for i in range(40):
        name, header, size = b"archive/data/%02d" % i, start + 100 * i, i + 1
        extra, comment, kind, low = FAR.pack(1, 8, header), b"", odd.get(i), 0xFFFFFFFF
        if kind == "near":
            low = 5
        elif kind == "sizes":
            size = 0xFFFFFFFF
        elif kind == "other field":
            extra = FAR.pack(2, 8, header)
        elif kind == "short":
            extra = extra[:4]
        elif kind == "behind another":
            extra = struct.pack("<2H", 9, 0) + extra
        elif kind == "comment":
            extra, comment = extra[:4], extra[4:]
        elif kind == "marked":
            extra = FAR.pack(1, 4, header)
        rows.append(entry(name, size, low, extra, comment))
    data = b"".join(rows)
    with one_by_one():
        alone = members(data, 40)
    assert members(data, 40) == alone
    if not odd:
        assert [m.header for m in alone] == [start + 100 * i for i in range(40)]
