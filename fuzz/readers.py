"""Coverage-guided fuzzing of each reader with atheris, from the sound and damaged files of the corpus.

    python -m fuzz.readers --seconds 300 [READER ...]     # all of them, one after the other
    python -m fuzz.readers --one zip FILE                 # read one finding again

A reader may only return an archive or raise ReadError with a printable message that names the file. What
libFuzzer finds (a crash, a hang, too much memory) is left in ``.cache/fuzz/READER/`` and the exit code is 1.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(".cache/fuzz")
MEMORY, TIMEOUT, LONGEST = 1024, 20, 16_384  # MB, seconds for one input, bytes

# reader -> file name of the input; "pickle in zip" and "index" wrap it
READERS = {
    "zip": "fuzz.pth",
    "pickle in zip": "fuzz.pth",
    "legacy": "fuzz.pth",
    "pickle": "fuzz.pkl",
    "tar": "fuzz.pth",
    "safetensors": "fuzz.safetensors",
    "index": "fuzz.safetensors.index.json",
}


def read(reader: str, folder: Path, data: bytes) -> Any:
    """Write the input as a file of its kind and open it."""
    from ckptdoctor.errors import ReadError
    from ckptdoctor.formats import open_checkpoint

    path = folder / READERS[reader]
    path.write_bytes(zipped(data) if reader == "pickle in zip" else data)
    try:
        archive = open_checkpoint(path)
    except ReadError as error:
        if not str(error).isprintable() or path.name.split(".")[0] not in str(error):
            raise AssertionError(f"a message without the file's name, or not printable: {error!r}") from error
        return None
    for state_dict in archive.state_dicts:
        for key, spec in state_dict.tree.specs.items():
            assert isinstance(key, str) and all(n >= 0 for n in spec.shape), key
    for ref in archive.storages.values():
        assert ref.offset >= 0
    return archive


def zipped(pickle: bytes) -> bytes:
    """A torch zip around a pickle, with two storages; a changed byte would not get past its checksum."""
    import io
    import zipfile

    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as new:
        new.writestr("a/data.pkl", pickle)
        new.writestr("a/version", "3\n")
        for name in ("0", "1"):
            new.writestr(f"a/data/{name}", b"\0" * 432)
    return out.getvalue()


def fuzz_one(reader: str, arguments: list[str]) -> None:
    """Run libFuzzer in this process; it ends the process."""
    import atheris

    with atheris.instrument_imports(include=["ckptdoctor"]):
        import ckptdoctor.formats
        import ckptdoctor.formats.plain_pickle
        import ckptdoctor.formats.safetensors
        import ckptdoctor.formats.sharded
        import ckptdoctor.formats.torch_legacy
        import ckptdoctor.formats.torch_tar
        import ckptdoctor.formats.torch_zip  # noqa: F401  # imported here so that it is instrumented
    shared = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=shared) as name:
        folder = Path(name)
        if reader == "index":
            beside(folder)
        atheris.Setup([sys.argv[0], *arguments], lambda data: read(reader, folder, data))
        atheris.Fuzz()


def beside(folder: Path) -> None:
    """The shards that the seeds name."""
    from fixtures.damaged.shards import good

    good(folder)


def seeds(reader: str, folder: Path) -> None:
    """Every file of the corpus that the reader may get, as it is."""
    import warnings

    from fixtures.damaged import all_cases

    folder.mkdir(parents=True, exist_ok=True)
    begins = {"zip": ("zip",), "legacy": ("legacy",), "pickle": ("pickle",), "safetensors": ("safetensors",), "index": ("index",), "tar": ("tar",), "pickle in zip": ("zip",)}  # fmt: skip
    with tempfile.TemporaryDirectory() as made, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in all_cases():
            if not case.name.startswith(begins[reader]):
                continue
            (Path(made) / case.folder).mkdir()
            path = case.make(Path(made) / case.folder, Path(made) / "canary")
            data = path.read_bytes() if path.is_file() else b""
            data = _inner(data) if reader == "pickle in zip" else data
            if data and len(data) <= LONGEST:
                (folder / case.folder).write_bytes(data)
        if reader == "tar":
            _tar_seed(folder)


def _inner(data: bytes) -> bytes:
    import io
    import zipfile

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as opened:
            name = next(n for n in opened.namelist() if n.endswith("data.pkl"))
            return opened.read(name)
    except Exception:  # the damaged ones
        return b""


def _tar_seed(folder: Path) -> None:
    import torch

    from tests.formats.samples import save_tar

    save_tar(folder / "sound", {"w": torch.ones(2, 3), "b": torch.ones(2)})


def campaign(reader: str, seconds: int) -> tuple[str, bool]:
    """Fuzz one reader in a process of its own; one line of figures, and whether nothing was found."""
    folder = ROOT / reader.replace(" ", "-")
    seeds(reader, folder / "seeds")
    (folder / "grown").mkdir(exist_ok=True)
    command = [
        sys.executable, "-m", "fuzz.readers", "--child", reader, "--", f"-max_total_time={seconds}", f"-max_len={LONGEST}",
        f"-timeout={TIMEOUT}", f"-rss_limit_mb={MEMORY}", f"-artifact_prefix={folder}/", "-print_final_stats=1",
        str(folder / "grown"), str(folder / "seeds"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    runs = re.search(r"number_of_executed_units:\s*(\d+)", done.stderr)
    cover = re.findall(r"cov: (\d+)", done.stderr)
    good = done.returncode == 0
    line = f"{reader}: {int(runs[1]) if runs else 0:,} executions, {cover[-1] if cover else 0} edges, " + ("nothing found" if good else "FOUND")  # fmt: skip
    if not good:
        (folder / "log").write_text(done.stderr)
        line += f" (see {folder}/log)\n" + "\n".join(done.stderr.splitlines()[-25:])
    return line, good


def main() -> int:
    """All readers, or those named."""
    if "--child" in sys.argv:
        at = sys.argv.index("--child")
        fuzz_one(sys.argv[at + 1], sys.argv[at + 3 :])
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("reader", nargs="*", choices=[*READERS, []])
    parser.add_argument("--seconds", type=int, default=300, help="for each reader")
    parser.add_argument("--one", nargs=2, metavar=("READER", "FILE"))
    asked = parser.parse_args()
    if asked.one:
        with tempfile.TemporaryDirectory() as folder:
            print(read(asked.one[0], Path(folder), Path(asked.one[1]).read_bytes()))
        return 0
    ends = []
    for reader in asked.reader or READERS:
        line, good = campaign(reader, asked.seconds)
        print(line, flush=True)
        ends.append(good)
    return 0 if all(ends) else 1


if __name__ == "__main__":
    sys.exit(main())
