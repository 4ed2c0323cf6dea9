"""Reading at places that may be near to each other gives the bytes of the file, wherever they are."""

import os
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckptdoctor.errors import ReadError
from ckptdoctor.formats import near
from ckptdoctor.formats.blobs import Files
from ckptdoctor.formats.near import Near

SIZE = 300_000
DATA = random.Random(3).randbytes(SIZE)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("near")
    for name, data in (("a", DATA), ("b", DATA[::-1])):
        (folder / name).write_bytes(data)
    return str(folder / "a"), str(folder / "b")


step = st.tuples(
    st.integers(0, 1), st.integers(-500, 9000) | st.integers(-SIZE, SIZE), st.integers(0, 50_000)
)


@given(steps=st.lists(step, min_size=1, max_size=80))
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_order_of_reads(files: tuple[str, str], steps: list[tuple[int, int, int]]) -> None:
    reader, at = Near(Files()), 0
    for which, jump, nbytes in steps:
        at = min(max(at + jump, 0), SIZE - nbytes)
        data = DATA[::-1] if which else DATA
        assert bytes(reader.read(files[which], at, nbytes)) == data[at : at + nbytes]
        at += nbytes


def test_many_that_follow_each_other_are_few_reads(
    files: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, real = [], near.read_at
    monkeypatch.setattr(near, "read_at", lambda *args: reads.append(1) or real(*args))
    reader = Near(Files())
    assert b"".join(reader.read(files[0], at, 128) for at in range(0, SIZE - 128, 192))[:128] == DATA[:128]
    assert len(reads) < 10


def test_a_file_that_became_shorter_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(DATA)
    reader = Near(files := Files())
    files.descriptor(str(tmp_path / "a"))
    os.truncate(tmp_path / "a", 100)
    with pytest.raises(ReadError, match="became shorter"):
        reader.read(str(tmp_path / "a"), 50, 100)
