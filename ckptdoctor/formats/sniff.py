"""What a file is by its first bytes, and what to do when it is no checkpoint."""

from __future__ import annotations

import re
from typing import NamedTuple

from ckptdoctor.errors import CorruptCheckpointError, ReadError, UnknownFormatError
from ckptdoctor.formats.source import FileSource
from ckptdoctor.formats.words import show, size_words

# pickle.dumps(0x1950A86A20F9469CFC6C, protocol): how every legacy torch file begins
LEGACY_NUMBER = 0x1950A86A20F9469CFC6C
_LEGACY = re.compile(
    rb"(?:\x80[\x02-\x05](?:\x95.{8})?)?"
    rb"(?:\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19\.|L?119547037146038801333356L?\n\.)",
    re.S,
)
# Compiled when they are needed, which is seldom.
_LFS = rb"version https://git-lfs\.github\.com/spec/v1\s+oid sha256:([0-9a-f]+)\s+size (\d+)"
_HTML = rb"(?is)\s*(?:<!--.*?-->\s*)?<(?:!doctype|html|head|\?xml|body|script)"
DOWNLOAD = "download it again, from the file's own link and not from the page around it"


class Foreign(NamedTuple):
    """A kind of file that is no checkpoint: its first bytes, its name, what to do."""

    magic: bytes
    name: str
    advice: str
    offset: int = 0


CONVERT = "convert it with the tools of its own framework"
FOREIGN = (
    Foreign(b"\x1f\x8b", "a gzip file", "unpack it first: gunzip -c FILE > checkpoint.pth (or tar xzf FILE)"),
    Foreign(b"BZh", "a bzip2 file", "unpack it first: bunzip2 FILE"),
    Foreign(b"\xfd7zXZ\x00", "an xz file", "unpack it first: unxz FILE"),
    Foreign(b"\x28\xb5\x2f\xfd", "a zstd file", "unpack it first: unzstd FILE"),
    Foreign(b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack it first: 7z x FILE"),
    Foreign(b"Rar!\x1a\x07", "a RAR archive", "unpack it first: unrar x FILE"),
    Foreign(b"\x89PNG\r\n\x1a\n", "a PNG picture", "look for the checkpoint itself"),
    Foreign(b"\xff\xd8\xff", "a JPEG picture", "look for the checkpoint itself"),
    Foreign(b"%PDF-", "a PDF document", "look for the checkpoint itself"),
    Foreign(b"GGUF", "a GGUF file (llama.cpp)", "use the original checkpoint, or " + CONVERT),
    Foreign(b"lmgg", "a GGML file (old llama.cpp)", "use the original checkpoint"),
    Foreign(b"tjgg", "a GGML file (old llama.cpp)", "use the original checkpoint"),
    Foreign(b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras, TensorFlow)", CONVERT),
    Foreign(b"\x93NUMPY", "a numpy array (.npy)", "torch.save a dict of torch.from_numpy of it"),
    Foreign(b"TFL3", "a TensorFlow Lite model", CONVERT, 4),
    Foreign(b"ET12", "an ExecuTorch program", "use the checkpoint it was exported from", 4),
    Foreign(b"\x7fELF", "a program (ELF)", "look for the checkpoint itself"),
    Foreign(b"SQLite format 3\x00", "an SQLite database", "look for the checkpoint itself"),
)  # fmt: skip


def foreign(path: str, what: str, advice: str) -> UnknownFormatError:
    """The error for a file of another kind."""
    return UnknownFormatError(f"{show(path)}: this is {what}, not a checkpoint; {advice}")


def sniff(source: FileSource) -> str:
    """ "zip", "legacy", "tar", "safetensors", "json" or "pickle"; raises for everything else.

    UnknownFormatError names what the file is instead; CorruptCheckpointError is for an empty file.
    """
    head = source.some(0, 4096)
    if not head:
        raise CorruptCheckpointError(f"{show(source.path)}: the file is empty; download or copy it again")
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return "zip"
    if _LEGACY.match(head) or (
        len(head) < 15 and b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.".startswith(head)
    ):
        return "legacy"
    if looks_like_safetensors(head, source.size):
        return "safetensors"
    if head[257:262] == b"ustar" or _old_tar(head):
        return "tar"
    refuse_foreign(source.path, head, source.size)
    if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"["):
        return "json"
    if looks_like_pickle(head):
        return "pickle"
    raise _nothing_known(source.path, head)


def looks_like_safetensors(head: bytes, size: int) -> bool:
    """An 8-byte length, then a JSON object. A length beyond the file still looks like one (truncated)."""
    if len(head) < 9 or head[8:9] != b"{":
        return False
    return int.from_bytes(head[:8], "little") < 2**40 and head[9:10] in (
        b'"',
        b"}",
        b" ",
        b"\n",
        b"\t",
        b"\r",
        b"",
    )


def _old_tar(head: bytes) -> bool:
    """A tar header without the "ustar" mark: its checksum is right."""
    if len(head) < 512:
        return False
    try:
        stored = int(head[148:156].strip(b" \0") or b"x", 8)
    except ValueError:
        return False
    return stored == sum(head[:148]) + 8 * 32 + sum(head[156:512])


def looks_like_pickle(head: bytes) -> bool:
    """Protocol 2 to 5 by its mark; 0 and 1 by the way a dict, list, tuple or object begins."""
    if head[:1] == b"\x80":
        return 2 <= head[1:2][0] <= 5 if len(head) > 1 else True
    return bool(re.match(rb"\}q|\(dp|\(lp|\]q|c[\w.]+\n\w+\n|\(i[\w.]+\n\w+\n|ccopy_reg\n|\(dq|\(lq", head))


def refuse_foreign(path: str, head: bytes, size: int) -> None:
    """Raise UnknownFormatError if the first bytes are those of a known other kind of file."""
    if found := re.match(_LFS, head):
        raise foreign(
            path,
            f"a git-lfs pointer to a file of {size_words(int(found[2][:18]))}",
            "fetch the file itself: git lfs install && git lfs pull",
        )
    if head.startswith(b"version https://git-lfs"):
        raise foreign(path, "a git-lfs pointer", "fetch the file itself: git lfs install && git lfs pull")
    if re.match(_HTML, head):
        raise foreign(path, "an HTML or XML page (a login, quota or error page?)", DOWNLOAD)
    for kind in FOREIGN:
        if head.startswith(kind.magic, kind.offset):
            raise foreign(path, kind.name, kind.advice.replace("FILE", show(path)))


def _nothing_known(path: str, head: bytes) -> ReadError:
    if not head.strip(b"\0"):
        return CorruptCheckpointError(
            f"{show(path)}: it begins with zeros only (an unfinished download or copy); download it again"
        )
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        text = head[: error.start].decode() if error.start > len(head) - 4 else ""
    if text and all(c.isprintable() or c.isspace() for c in text):
        if path.endswith(".py"):
            return foreign(path, "a Python file", "give a file of weights; models are given as MODEL")
        words = text.strip()
        if not words:
            return foreign(path, "a text file of nothing but white space", DOWNLOAD)
        return foreign(path, f"a text file that begins `{show(words.splitlines()[0][:40])}`", DOWNLOAD)
    return UnknownFormatError(
        f"{show(path)}: no known checkpoint format (it begins with {head[:8].hex(' ')}); "
        "torch (.pth, .pt, .ckpt, .bin), safetensors and shard indexes can be read"
    )
