"""What a dtype change does to values, decided from the two dtypes alone."""

from __future__ import annotations

from typing import Literal

CastClass = Literal["lossless", "rounding", "range", "truncation", "payload"]

# From harmless to worst; a tensor made of several sources takes the worst of theirs.
CAST_CLASSES: tuple[CastClass, ...] = ("lossless", "rounding", "range", "truncation", "payload")

# dtype -> (significand bits with the hidden one, largest binary exponent); IEEE 754 and bfloat16.
_FLOATS = {"float16": (11, 15), "bfloat16": (8, 127), "float32": (24, 127), "float64": (53, 1023)}
_COMPLEX = {"complex32": "float16", "complex64": "float32", "complex128": "float64"}
# dtype -> (lowest power of two below, above): the values are in [-2**low, 2**high).
_INTS = {
    "bool": (0, 1), "uint8": (0, 8), "uint16": (0, 16), "uint32": (0, 32), "uint64": (0, 64),
    "int8": (7, 7), "int16": (15, 15), "int32": (31, 31), "int64": (63, 63),
}  # fmt: skip


def cast_class(dtype_from: str, dtype_to: str) -> CastClass:
    """Class of casting ``dtype_from`` to ``dtype_to`` (torch names without ``torch.``).

    ``lossless`` every value stays; ``rounding`` digits may be lost (and a float beyond the new
    maximum becomes inf); ``range`` values may not fit at all; ``truncation`` a fraction, an imaginary
    part or everything but zero/non-zero is cut off; ``payload`` the numbers are codes (8-bit, packed,
    quantized) that mean nothing without their scales.
    """
    if dtype_from == dtype_to:
        return "lossless"
    if dtype_from in _COMPLEX:
        return _from_complex(dtype_from, dtype_to)
    real_to = _COMPLEX.get(dtype_to, dtype_to)
    if dtype_from in _INTS:
        return _from_int(dtype_from, real_to)
    if dtype_from in _FLOATS:
        return _from_float(dtype_from, real_to)
    return "payload"  # fp8, fp4, quantized


def worst(classes: list[CastClass]) -> CastClass:
    """The most harmful of several classes."""
    return max(classes, key=CAST_CLASSES.index, default="lossless")


def _from_complex(dtype_from: str, dtype_to: str) -> CastClass:
    if dtype_to in _COMPLEX:
        return cast_class(_COMPLEX[dtype_from], _COMPLEX[dtype_to])
    return "truncation"


def _from_int(dtype_from: str, dtype_to: str) -> CastClass:
    low, high = _INTS[dtype_from]
    if dtype_to == "bool":
        return "truncation"
    if dtype_to in _INTS:
        to_low, to_high = _INTS[dtype_to]
        return "lossless" if low <= to_low and high <= to_high else "range"
    if dtype_to not in _FLOATS or dtype_from in ("int8", "uint8"):
        return "payload"
    digits, exponent = _FLOATS[dtype_to]
    if max(low, high) > exponent + 1:
        return "range"
    return "lossless" if max(low, high) <= digits else "rounding"


def _from_float(dtype_from: str, dtype_to: str) -> CastClass:
    if dtype_to in _INTS:
        return "truncation"
    if dtype_to not in _FLOATS:
        return "range" if dtype_to.startswith("float8") else "payload"
    digits, exponent = _FLOATS[dtype_from]
    to_digits, to_exponent = _FLOATS[dtype_to]
    return "lossless" if digits <= to_digits and exponent <= to_exponent else "rounding"
