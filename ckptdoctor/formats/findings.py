"""The findings of reading a file, CKD401 to CKD406: constructors, so that their words are in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ckptdoctor.diagnostics import Diagnostic, Fix, Help
from ckptdoctor.formats.words import listing, plural, show, size_words


def unknown_globals(path: str, names: Sequence[str]) -> Diagnostic:
    """CKD401 `unknown-global`: the pickle names classes or functions that no plain checkpoint needs."""
    return Diagnostic(
        code="CKD401",
        name="unknown-global",
        severity="warning",
        title=f"the pickle names {_classes(len(names))} outside the known-harmless list: "
        f"{listing(list(names))}",
        place=path,
        why="torch.load(weights_only=True) refuses it; weights_only=False would import and call them",
        notes=("ckptdoctor imported and called nothing; they are kept as inert values",),
        helps=(Help(f"ckptdoctor inspect {show(path)}", "shows where in the file they are"),),
    )


def _classes(n: int) -> str:
    return "1 class or function" if n == 1 else f"{n:,} classes or functions"


def dangerous_globals(path: str, names: Sequence[str]) -> Diagnostic:
    """CKD401 as an error: names known from attacks."""
    return Diagnostic(
        code="CKD401",
        name="unknown-global",
        severity="error",
        title=f"the pickle names {listing(list(names))}, known from files that attack whoever loads them",
        place=path,
        why="a state dict never needs them; torch.load(weights_only=False) would run what the file asks for",
        notes=("ckptdoctor imported and called nothing",),
        fix=Fix("do not load this file with weights_only=False; get it from a source you trust", "unsafe"),
    )


def pickled_module(path: str, places: Mapping[str, str]) -> Diagnostic:
    """CKD402 `pickled-module`: a whole nn.Module was saved; `places` is path -> class name."""
    where, what = next(iter(places.items()))
    more = f" and {len(places) - 1} more" if len(places) > 1 else ""
    return Diagnostic(
        code="CKD402",
        name="pickled-module",
        severity="warning",
        title=f"a whole module is pickled, {show(what)}{' at ' + show(where) if where else ''}{more}, "
        "not only its state dict",
        place=path,
        why="loading it needs the very class it was saved with and weights_only=False; "
        "its tensors were gathered here without that class",
        fix=Fix("write a file that holds the state dict only", "safe"),
        helps=(
            Help(
                f"ckptdoctor repair MODEL {show(path)} -o clean.pth",
                "writes that file, checked against MODEL",
            ),
        ),
    )


def storage_bloat(path: str, stored: int, used: int, keys: Sequence[str]) -> Diagnostic:
    """CKD403 `storage-bloat`: the storages in the file are much larger than what the tensors show of them."""
    return Diagnostic(
        code="CKD403",
        name="storage-bloat",
        severity="warning",
        title=f"the file stores {size_words(stored)} for tensors of {size_words(used)}",
        place=path,
        why="torch.save writes the whole storage that a view or slice belongs to"
        + (f": {listing(list(keys))}" if keys else ""),
        fix=Fix("save copies: {k: v.clone() for k, v in state_dict.items()}", "safe"),
        keys=tuple(keys),
    )


def foreign_devices(path: str, devices: Mapping[str, int]) -> Diagnostic:
    """CKD404 `device-tag`: saved on other devices than the CPU; `devices` is tag -> storages."""
    told = ", ".join(f"{plural(n, 'storage')} on {show(d, 40)}" for d, n in list(devices.items())[:4])
    return Diagnostic(
        code="CKD404",
        name="device-tag",
        severity="note",
        title=f"the tensors were saved on another device: {told}",
        place=path,
        why="torch.load without map_location puts tensors back on that device and fails where it is missing",
        helps=(Help(f'torch.load("{show(path)}", map_location="cpu")', "what ckptdoctor does by itself"),),
    )


def bad_crc(path: str, members: Sequence[str], keys: Sequence[str] = ()) -> Diagnostic:
    """CKD405 `bad-crc`: bytes differ from the checksum that was stored with them."""
    return Diagnostic(
        code="CKD405",
        name="bad-crc",
        severity="error",
        title=f"{plural(len(members), 'member')} of the zip changed after saving: {listing(list(members))}",
        place=path,
        why="the CRC-32 stored with the bytes does not fit; torch.load does not check it and loads them",
        notes=(f"it holds {listing(list(keys))}",) if keys else (),
        fix=Fix("download or copy the file again", "unsafe"),
        keys=tuple(keys),
    )


def non_finite(path: str, key: str, nans: int, infs: int, numel: int) -> Diagnostic:
    """CKD406 `non-finite`: a tensor holds NaN or infinity."""
    parts = [plural(n, w) for n, w in ((nans, "NaN"), (infs, "infinite value")) if n]
    return Diagnostic(
        code="CKD406",
        name="non-finite",
        severity="warning",
        title=f"{show(key)} holds {' and '.join(parts)} among {plural(numel, 'value')}",
        place=f"{path}#{key}",
        why="a model that computes with it gives NaN; training diverged, or the file is damaged",
        keys=(key,),
    )
