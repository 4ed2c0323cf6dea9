"""The values of a file as they are kept until somebody asks; `content` says what becomes of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckptdoctor.formats.base import StorageRef
from ckptdoctor.trees import TensorSpec


class Content:
    """The values of one file. ``value`` is the whole of it, made when asked for."""

    def __init__(self, root: Any, path: str, nbytes: Mapping[str, int]) -> None:
        self._root = root
        self._path, self._nbytes = path, nbytes
        self._made: Any = None
        self._specs: Mapping[str, TensorSpec] | None = None
        self._storages: dict[str, StorageRef] = {}

    @classmethod
    def of_specs(cls, specs: Mapping[str, TensorSpec], path: str) -> Content:
        """The values of a file that is nothing but these tensors."""
        made = cls(None, path, {})
        made._specs = specs
        return made

    @property
    def value(self) -> Any:
        """The root object in plain values; raises CorruptCheckpointError naming a tensor that is wrong."""
        if self._made is None:
            from ckptdoctor.formats.content import leaves, plain

            if self._specs is not None:
                self._made = (leaves(self._specs),)
            else:
                self._made = (plain(self._root, self._path, self._nbytes, self._storages),)
        return self._made[0]

    @property
    def storages(self) -> Mapping[str, StorageRef]:
        """Storages that only values outside of state dicts have: numpy arrays, kept in the pickle itself."""
        return (self.value is not None and self._storages) or {}
