"""The rebuild functions of torch that a pickle may name, as functions that only make records.

Signatures and meaning follow ``torch/_utils.py``, ``torch/_tensor.py`` and ``torch/nn/parameter.py``.
Instances with ``__slots__`` stand for functions, so that a hostile BUILD finds nothing to write to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ckptdoctor.formats.inert import (
    Closed,
    DefaultMapping,
    DtypeName,
    Inert,
    OrderedMapping,
    StorageType,
    TensorRecord,
)
from ckptdoctor.trees import DTYPE_SIZES

STORAGE_DTYPES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16", "LongStorage": "int64", "IntStorage": "int32",
    "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8", "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64", "ComplexDoubleStorage": "complex128",
    "ComplexHalfStorage": "complex32",
    "QInt8Storage": "qint8", "QUInt8Storage": "quint8", "QInt32Storage": "qint32",
    "QUInt4x2Storage": "quint4x2", "QUInt2x4Storage": "quint2x4",
    "Float8_e4m3fnStorage": "float8_e4m3fn", "Float8_e5m2Storage": "float8_e5m2",
    "UntypedStorage": "", "_UntypedStorage": "",
}  # fmt: skip

DTYPE_ALIASES = {
    "float": "float32", "double": "float64", "half": "float16", "int": "int32", "long": "int64",
    "short": "int16", "cfloat": "complex64", "cdouble": "complex128", "chalf": "complex32",
}  # fmt: skip

UNKNOWN_DTYPES = {f"{sign}{bits}" for sign in ("int", "uint") for bits in range(1, 8)} | {
    "bits8", "bits16", "bits1x8", "bits2x4", "bits4x2",
}  # fmt: skip


class Function(Closed):
    """A callable with no attribute that a pickle could set."""

    __slots__ = ("_call",)
    _call: Callable[..., Any]

    def __init__(self, call: Callable[..., Any]) -> None:
        object.__setattr__(self, "_call", call)

    def __call__(self, *args: Any) -> Any:
        """Make the record."""
        return self._call(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse."""
        raise AttributeError(f"cannot set {name!r}")


def _tensor_v1(storage: Any, offset: Any, size: Any, stride: Any) -> TensorRecord:
    return TensorRecord(storage, offset, size, stride)


def _tensor_v3(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, bits: Any = None
) -> TensorRecord:
    return _typed(TensorRecord(storage, offset, size, stride, bits=bits), dtype)


def _typed(record: TensorRecord, dtype: Any) -> TensorRecord:
    record.dtype = dtype
    return record


def _parameter(data: Any, *_: Any) -> Any:
    return data.as_parameter() if isinstance(data, TensorRecord) else data


def _qtensor(storage: Any, offset: Any, size: Any, stride: Any, quantizer: Any, *_: Any) -> TensorRecord:
    record = TensorRecord(storage, offset, size, stride)
    record.layout = "quantized"
    scheme, *rest = quantizer
    record.values = {"scheme": _word(scheme)}
    record.parts = {}
    names = ("scale", "zero_point") if len(rest) == 2 else ("scales", "zero_points", "axis")
    for name, value in zip(names, rest, strict=False):
        (record.parts if isinstance(value, TensorRecord) else record.values)[name] = value
    return record


SPARSE_PARTS = {
    "sparse_coo": ("indices", "values"),
    "sparse_csr": ("compressed_indices", "plain_indices", "values"),
    "sparse_csc": ("compressed_indices", "plain_indices", "values"),
    "sparse_bsr": ("compressed_indices", "plain_indices", "values"),
    "sparse_bsc": ("compressed_indices", "plain_indices", "values"),
}


def _sparse(layout: Any, data: Any) -> TensorRecord:
    name = _word(layout).removeprefix("torch.")
    roles = SPARSE_PARTS[name]
    record = TensorRecord(None, 0, data[len(roles)], None)
    record.layout = name
    record.parts = dict(zip(roles, data, strict=False))
    record.values = {"coalesced": data[3] if name == "sparse_coo" and len(data) > 3 else None}
    return record


def _word(value: Any) -> str:
    """The name of a layout or scheme, which may be given as a string."""
    return value.name if isinstance(value, DtypeName) else value if isinstance(value, str) else ""


def _layout(name: Any) -> Any:
    return name


def _nested(buffer: Any, sizes: Any, strides: Any, offsets: Any) -> TensorRecord:
    record = TensorRecord(None, 0, None, None)
    record.layout = "nested"
    record.parts = {"buffer": buffer, "sizes": sizes, "strides": strides, "offsets": offsets}
    return record


def _meta(dtype: Any, size: Any, stride: Any, *_: Any) -> TensorRecord:
    record = _typed(TensorRecord(None, 0, size, stride), dtype)
    record.layout = "meta"
    return record


def _wrapper_subclass(cls: Any, dtype: Any, size: Any, stride: Any, *_: Any) -> TensorRecord:
    record = _typed(TensorRecord(None, 0, size, stride), dtype)
    record.layout = "subclass"
    record.values = {"class": _name_of(cls)}
    return record


def _from_cpu_tensor(data: Any, dtype: Any, device: Any, *_: Any) -> Any:
    if isinstance(data, TensorRecord):
        data.values = {**(data.values or {}), "device": device}
    return data


def _from_numpy(array: Any, dtype: Any, device: Any, *_: Any) -> TensorRecord:
    record = _typed(TensorRecord(None, 0, None, None), dtype)
    record.layout = "numpy"
    record.values = {"array": array, "device": device}
    return record


def _from_type(function: Any, cls: Any, args: Any, state: Any = None) -> Any:
    """`torch._tensor._rebuild_from_type_v2`: a subclass, or a tensor with Python attributes."""
    if not isinstance(function, Function) and function is not TensorRecord:
        return Inert(function, cls, args, state)
    made = function(*args)
    if not isinstance(made, TensorRecord):
        return made
    if cls is PARAMETER:
        return made.as_parameter()
    if cls is not TENSOR and not isinstance(cls, Function) and made.layout == "strided":
        made.values = {**(made.values or {}), "class": _name_of(cls)}
    return made


def _name_of(cls: Any) -> str:
    if isinstance(cls, type) and issubclass(cls, Inert):
        return f"{cls.module}.{cls.name}"
    return type(cls).__name__


class ParameterType(Closed):
    """``torch.nn.Parameter``: calling it, or NEWOBJ, gives the tensor as a parameter."""

    __slots__ = ()

    def __new__(cls, data: Any = None, *_: Any) -> Any:
        """The tensor as a parameter."""
        return _parameter(data)


class TensorType(Closed):
    """``torch.Tensor`` and the old ``Variable``: the tensor they are given."""

    __slots__ = ()

    def __new__(cls, data: Any = None, *_: Any) -> Any:
        """The tensor itself."""
        return data


PARAMETER = ParameterType
TENSOR = TensorType


def _reconstructor(cls: Any, base: Any = None, state: Any = None) -> Any:
    """`copyreg._reconstructor`: how protocols 0 and 1 make an object of a plain class."""
    made = Inert(cls, base, state) if not _is_stand_in(cls) else cls.__new__(cls)
    if isinstance(made, Inert) and state is not None:
        made.args = (state,)
    return made


def _newobj(cls: Any, *args: Any) -> Any:
    return cls.__new__(cls, *args) if _is_stand_in(cls) else Inert(cls, *args)


def _is_stand_in(cls: Any) -> bool:
    return isinstance(cls, type) and issubclass(cls, Inert | OrderedMapping | ParameterType | TensorType)


def _size(values: Any = ()) -> tuple[Any, ...]:
    return tuple(values) if isinstance(values, list | tuple) else ()


def _first(value: Any = None, *_: Any) -> Any:
    return value


def _known() -> dict[tuple[str, str], Any]:
    utils: dict[str, Callable[..., Any]] = {
        "_rebuild_tensor": _tensor_v1,
        "_rebuild_tensor_v3": _tensor_v3,
        "_rebuild_parameter": _parameter,
        "_rebuild_parameter_with_state": _parameter,
        "_rebuild_qtensor": _qtensor,
        "_rebuild_sparse_tensor": _sparse,
        "_rebuild_sparse_csr_tensor": _sparse,
        "_rebuild_nested_tensor": _nested,
        "_rebuild_meta_tensor_no_storage": _meta,
        "_rebuild_wrapper_subclass": _wrapper_subclass,
        "_rebuild_device_tensor_from_cpu_tensor": _from_cpu_tensor,
        "_rebuild_device_tensor_from_numpy": _from_numpy,
        "_rebuild_xla_tensor": _from_numpy,
    }
    known: dict[tuple[str, str], Any] = {("torch._utils", n): Function(f) for n, f in utils.items()}
    known["torch._utils", "_rebuild_tensor_v2"] = TensorRecord
    for module in ("torch._tensor", "torch.tensor"):
        known[module, "_rebuild_from_type"] = known[module, "_rebuild_from_type_v2"] = Function(_from_type)
        known[module, "Tensor"] = TENSOR
    known["torch", "Tensor"] = known["torch.autograd.variable", "Variable"] = TENSOR
    known["torch.autograd", "Variable"] = TENSOR
    for name in ("Parameter", "Buffer"):
        known["torch.nn.parameter", name] = PARAMETER if name == "Parameter" else TENSOR
    known["torch.serialization", "_get_layout"] = Function(_layout)
    known["torch", "Size"] = Function(_size)
    for module in ("copyreg", "copy_reg"):
        known[module, "_reconstructor"] = Function(_reconstructor)
        known[module, "__newobj__"] = Function(_newobj)
    for name in (
        "build_intlist",
        "build_tensorlist",
        "build_doublelist",
        "build_boollist",
        "restore_type_tag",
    ):
        known["torch.jit._pickle", name] = Function(_first)
    known["collections", "OrderedDict"] = OrderedMapping
    known["collections", "defaultdict"] = DefaultMapping
    return known


KNOWN = _known()


def resolve(module: str, name: str) -> Any:
    """The record maker for a global that torch itself writes; None for everything else."""
    found = KNOWN.get((module, name))
    if found is not None:
        return found
    if module.partition(".")[0] != "torch":
        return None
    if name in STORAGE_DTYPES:
        return StorageType(name, STORAGE_DTYPES[name])
    dtype = DTYPE_ALIASES.get(name, name)
    if module == "torch" and (dtype in DTYPE_SIZES or dtype in UNKNOWN_DTYPES):
        return DtypeName(dtype)
    if module == "torch" and name.startswith(("sparse_", "per_tensor_", "per_channel_", "strided")):
        return DtypeName(name)  # a layout or a quantization scheme: a name is all that is needed
    return None
