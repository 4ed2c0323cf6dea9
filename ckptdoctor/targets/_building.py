"""Building a module cheaply, in the worker: no values are computed that only an initialisation needs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

SEED = 0  # the same source gives the same initial values each time, so a repaired file can be made again

_LOCAL = ("cpu", "meta")
_RANDOM_INIT = (
    *("uniform_", "normal_", "trunc_normal_", "orthogonal_", "sparse_"),
    *("xavier_uniform_", "xavier_normal_", "kaiming_uniform_", "kaiming_normal_"),
    *("uniform", "normal", "orthogonal", "sparse"),  # deprecated spellings
    *("xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal"),
)
_skip_random_init = False


def prepare() -> None:
    """Once, before any code of the user runs."""
    for name in _RANDOM_INIT:
        if hasattr(torch.nn.init, name):
            setattr(torch.nn.init, name, _skippable(getattr(torch.nn.init, name)))
    # Python implementations of meta kernels hide torch's own native ones. The first use of one imports
    # torch._dynamo and sympy: a second more than `import torch` itself. Operators without a native
    # kernel raise then, and the build falls back to the CPU.
    library = getattr(torch._meta_registrations, "_meta_lib_dont_use_me_use_register_meta", None)
    if library is not None:
        library._destroy()


def _skippable(init: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(init)
    def skippable(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        return tensor if _skip_random_init else init(tensor, *args, **kwargs)

    return skippable


@contextmanager
def skipping_random_init() -> Iterator[None]:
    """Functions of ``torch.nn.init`` that draw random numbers leave the memory as it is."""
    global _skip_random_init
    before, _skip_random_init = _skip_random_init, True
    try:
        yield
    finally:
        _skip_random_init = before


class _NoAccelerator(TorchFunctionMode):
    """``device="cuda"``, ``.cuda()`` and ``.to("cuda")`` stay where the build happens.

    A tree does not depend on the device, and reading one must neither need nor occupy a GPU.
    """

    _MOVES = frozenset({"cuda", "xpu", "npu", "hpu", "mtia", "ipu"})

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in self._MOVES and args and isinstance(args[0], torch.Tensor):
            return args[0]
        if name == "to" and any(map(_is_foreign, (*args[1:], kwargs.get("device")))):
            dtypes = [a for a in (*args[1:], kwargs.get("dtype")) if isinstance(a, torch.dtype)]
            return func(args[0], dtypes[0]) if dtypes else args[0]
        if _is_foreign(kwargs.get("device")):
            del kwargs["device"]
        return func(*args, **kwargs)


def _is_foreign(device: object) -> bool:
    if isinstance(device, str):
        return device.split(":")[0] not in _LOCAL
    if isinstance(device, int):  # an accelerator's index; True and False are `non_blocking`
        return not isinstance(device, bool)
    return isinstance(device, torch.device) and device.type not in _LOCAL


def build(make: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """Call ``make`` on meta, then on the CPU without random initialisation, then on the CPU as it is.

    Returns the result and why it was not built on meta (None when it was). Raises what the
    last try raised, with a note when meta gave another reason.
    """
    try:
        with torch.device("meta"), _NoAccelerator():
            return make(), None
    except Exception as error:
        reason = error
    try:
        with torch.device("cpu"), _NoAccelerator(), skipping_random_init():
            return make(), reason
    except Exception:
        pass
    try:
        with torch.device("cpu"), _NoAccelerator():
            return make(), reason
    except Exception as error:
        if str(error) != str(reason):
            error.add_note(f"on meta: {type(reason).__name__}: {reason}")
        raise
