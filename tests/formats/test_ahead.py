"""Reading ahead is advice: it changes nothing and complains of nothing."""

from __future__ import annotations

from pathlib import Path

from ckptdoctor.formats import ahead


def test_every_byte_is_asked_for_once(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "a").write_bytes(b"x" * 1000)
    asked = []
    monkeypatch.setattr(ahead, "STEP", 300)
    monkeypatch.setattr(ahead, "_is_there", lambda *_: False)
    monkeypatch.setattr(ahead, "_free", lambda: 1 << 20)
    monkeypatch.setattr(ahead.os, "posix_fadvise", lambda fd, at, count, how: asked.append((at, count)))
    thread = ahead.read_ahead([str(tmp_path / "a")])
    assert thread is not None
    thread.join()
    assert asked == [(0, 300), (300, 300), (600, 300), (900, 100)]


def test_no_more_than_a_part_of_the_free_memory(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "a").write_bytes(b"x" * 1000)
    asked = []
    monkeypatch.setattr(ahead, "_is_there", lambda *_: False)
    monkeypatch.setattr(ahead, "_free", lambda: 1000)
    monkeypatch.setattr(ahead.os, "posix_fadvise", lambda fd, at, count, how: asked.append(count))
    ahead._advise([str(tmp_path / "a"), str(tmp_path / "a")])
    assert asked == [250]


def test_a_file_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    ahead._advise([str(tmp_path / "nothing")])


def test_what_is_in_memory_is_not_asked_for(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "a").write_bytes(b"x" * 1000)
    asked = []
    monkeypatch.setattr(ahead, "STEP", 300)
    monkeypatch.setattr(ahead, "_is_there", lambda _, at: at not in (599, 600))
    monkeypatch.setattr(ahead.os, "posix_fadvise", lambda fd, at, count, how: asked.append((at, count)))
    ahead._advise([str(tmp_path / "a")])
    assert asked == [(300, 300), (600, 300)], "the second lacks its last byte, the third its first"


def test_a_system_that_does_not_tell_is_asked(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "a").write_bytes(b"x")
    with open(tmp_path / "a", "rb") as file:
        monkeypatch.setattr(ahead.os, "preadv", lambda *_: (_ for _ in ()).throw(BlockingIOError()))
        assert not ahead._is_there(file.fileno(), 0)
        monkeypatch.delattr(ahead.os, "RWF_NOWAIT", raising=False)
        assert not ahead._is_there(file.fileno(), 0)
