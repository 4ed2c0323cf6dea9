"""What every reader returns: an `Archive` of state dicts over storages. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from ckptdoctor.facts import Fact
from ckptdoctor.trees import ParamTree, TensorSpec

if TYPE_CHECKING:
    from ckptdoctor.diagnostics import Diagnostic
    from ckptdoctor.formats.deferred import Content

Format = Literal[
    "torch-zip",
    "torch-legacy",
    "torch-tar",
    "torchscript",
    "safetensors",
    "safetensors-index",
    "torch-index",
    "pickle",
]


Stamp = tuple[int, int]  # bytes of a file, and when it was last written (ns)


class StorageRef(NamedTuple):
    """Where the bytes of one storage are.

    ``offset`` and ``nbytes`` count bytes in ``file``; ``device`` is the location tag as saved
    (``"cuda:3"``). When ``compression`` is ``"deflate"``, ``offset`` and ``compressed_bytes`` are those
    of the compressed member and ``nbytes`` is what it unpacks to. ``crc`` is the zip member's CRC-32;
    None where the format has none or the writer left it out. ``inline`` holds the bytes themselves
    where the file has them only in an encoded form.
    """

    file: str
    offset: int
    nbytes: int
    dtype: str
    device: str
    compression: str = ""
    crc: int | None = None
    compressed_bytes: int = 0
    byteorder: str = "little"
    member: str = ""  # the zip member's name, for messages
    inline: bytes | None = None


# Formats of which plain torch.load (or safetensors' load_file) returns the state dict itself.
PLAIN_FORMATS = frozenset({"torch-zip", "torch-legacy", "safetensors"})


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a tensor that is no plain view is put together (sparse, quantized, conjugated ...).

    ``parts`` are the plain tensors it is made of, by role (``"indices"``, ``"values"``, ``"data"``);
    ``values`` are numbers and words (``scale``, ``axis``, ``coalesced``).
    """

    kind: str
    parts: Mapping[str, TensorSpec] = field(default_factory=dict)
    values: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class StateDict:
    """One state dict of a checkpoint.

    ``path`` says where: ``""`` (the file itself is the state dict), ``"state_dict"``,
    ``"model.ema"``, ``"models[0]"``. The specs' ``storage`` are keys of `Archive.storages`.
    """

    path: str
    tree: ParamTree
    note: str = ""
    recipes: Mapping[str, Recipe] = field(default_factory=dict)  # keys that are no plain views


@dataclass(frozen=True)
class Archive:
    """A checkpoint, read without its tensor bytes."""

    path: str
    format: Format
    description: str  # in words: "torch zip", "legacy torch (before 1.6)"
    size: int  # bytes of all its files
    state_dicts: tuple[StateDict, ...]
    storages: Mapping[str, StorageRef]
    rest: Mapping[str, str] = field(default_factory=dict)  # path -> short words
    tensors: int = 0  # how many keys hold a tensor, wherever they are
    globals: tuple[str, ...] = ()  # every class or function the pickle names
    unknown_globals: tuple[str, ...] = ()  # those outside the known-harmless list
    hints: Mapping[str, str] = field(default_factory=dict)
    diagnostics: tuple[Diagnostic, ...] = ()
    facts: tuple[Fact, ...] = ()  # head counts and the like, inside the file or beside it
    files: tuple[str, ...] = ()  # every file that belongs to it, the first is `path`
    stamps: Mapping[str, Stamp] = field(default_factory=dict)  # the files as they were when read
    # What is in no state dict, as plain values; None where the format has nothing of the kind.
    content: Content | None = field(default=None, repr=False, compare=False)

    @property
    def mentions_optimizer(self) -> bool:
        """Whether something beside the state dicts may be the state of an optimizer."""
        named = (text for row in self.rest.items() for text in row)
        return self.content is not None and any("optim" in text for text in named)

    def __getitem__(self, path: str) -> StateDict:
        """The state dict at `path`; raises KeyError with the paths that exist."""
        for state_dict in self.state_dicts:
            if state_dict.path == path:
                return state_dict
        raise KeyError(f"no state dict at {path!r}; there is {[s.path for s in self.state_dicts]}")
