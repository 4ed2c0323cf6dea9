"""The layers that a drawn network may have, and how each is called on a tensor of any shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm

BATCH = 2


class Bare(nn.Module):
    """Tensors that belong to no layer: parameters and buffers by name, from ``{name: shape}``."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], dtype: str = "float32") -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape, dtype=getattr(torch, dtype))))

    def forward(self, x: Tensor) -> Tensor:
        """Shift and scale by what the tensors hold."""
        return shifted(self, x)


class Buffers(nn.Module):
    """Buffers of every kind: integers, a mask, one that is not saved, one that is None."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("table", torch.zeros(width, dtype=torch.int32))
        self.register_buffer("mask", torch.zeros(width, dtype=torch.bool))
        self.register_buffer("positions", torch.arange(width), persistent=False)
        self.register_buffer("nothing", None)

    def forward(self, x: Tensor) -> Tensor:
        """Shift by what the buffers hold."""
        return shifted(self, x)


class Extra(nn.Linear):
    """A linear layer with state that is no tensor."""

    step = 0

    def get_extra_state(self) -> dict[str, int]:
        """What goes into the state dict as ``_extra_state``."""
        return {"step": self.step}

    def set_extra_state(self, state: Any) -> None:
        """Take it back."""
        self.step = int(state["step"])


class ExtraTensor(Extra):
    """A linear layer with state that is a tensor and no buffer."""

    def __init__(self, width: int, other: int) -> None:
        super().__init__(width, other)
        self.seen = torch.zeros(width)

    def get_extra_state(self) -> Tensor:  # type: ignore[override]  # torch lets it be anything, its stub says a dict
        """What goes into the state dict as ``_extra_state``."""
        return self.seen

    def set_extra_state(self, state: Any) -> None:
        """Take it back."""
        if isinstance(state, Tensor):
            self.seen = state.detach().clone()


class Numbers(nn.Module):
    """Buffers of dtypes that are no weights: quantised values, a scale in double precision."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for name, dtype in (("packed", torch.int8), ("codes", torch.uint8), ("short", torch.int16)):
            self.register_buffer(name, torch.zeros(width, width, dtype=dtype))
        self.register_buffer("eighths", torch.zeros(width, dtype=torch.float8_e4m3fn))
        self.register_buffer("precise", torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """Shift by what the buffers hold."""
        return shifted(self, x)


class Residual(nn.Module):
    """Children one after the other, around a shortcut."""


class Part(nn.Module):
    """Children one after the other."""


def shifted(module: nn.Module, x: Tensor) -> Tensor:
    """``x`` plus a number to which every tensor of the module contributes."""
    state = [t for t in module.state_dict().values() if isinstance(t, Tensor) and t.numel()]
    return x + sum(t.abs().mean() if t.is_complex() else t.double().abs().mean() for t in state)


def gated(w: int) -> nn.Module:
    """Bare gains with names as vision transformers have them."""
    return Bare({"gamma_1": (w,), "gamma_2": (w,)})


# kind -> how it is made from whole numbers; w is a width, v another one.
KINDS: dict[str, Callable[[int, int], nn.Module]] = {
    "Linear": lambda w, v: nn.Linear(w, v),
    "Linear without bias": lambda w, v: nn.Linear(w, v, bias=False),
    "Bilinear": lambda w, v: nn.Bilinear(w, v, w),
    "Conv1d": lambda w, v: nn.Conv1d(w, v, 3, padding=1),
    "Conv2d": lambda w, v: nn.Conv2d(w, v, 3, padding=1, bias=False),
    "Conv2d 1x1": lambda w, v: nn.Conv2d(w, v, 1),
    "Conv3d": lambda w, v: nn.Conv3d(w, v, 2),
    "Conv2d depthwise": lambda w, v: nn.Conv2d(w, w, 3, padding=1, groups=w),
    "ConvTranspose1d": lambda w, v: nn.ConvTranspose1d(w, v, 3),
    "ConvTranspose2d": lambda w, v: nn.ConvTranspose2d(w, v, 2),
    "ConvTranspose3d": lambda w, v: nn.ConvTranspose3d(w, v, 2),
    "BatchNorm1d": lambda w, v: nn.BatchNorm1d(w),
    "BatchNorm2d": lambda w, v: nn.BatchNorm2d(w),
    "BatchNorm2d plain": lambda w, v: nn.BatchNorm2d(w, affine=False),
    "BatchNorm3d": lambda w, v: nn.BatchNorm3d(w),
    "InstanceNorm2d": lambda w, v: nn.InstanceNorm2d(w, affine=True, track_running_stats=True),
    "GroupNorm": lambda w, v: nn.GroupNorm(1, w),
    "LayerNorm": lambda w, v: nn.LayerNorm(w),
    "RMSNorm": lambda w, v: nn.RMSNorm(w),
    "Embedding": lambda w, v: nn.Embedding(w + v, v),
    "square table": lambda w, v: nn.Embedding(w, w),
    "EmbeddingBag": lambda w, v: nn.EmbeddingBag(w + v, v),
    "LSTM": lambda w, v: nn.LSTM(w, v, bidirectional=w % 2 == 0, batch_first=True),
    "LSTM projected": lambda w, v: nn.LSTM(w, w + v, proj_size=v, batch_first=True),
    "RNN": lambda w, v: nn.RNN(w, v, batch_first=True),
    "GRUCell": lambda w, v: nn.GRUCell(w, v),
    "GRU": lambda w, v: nn.GRU(w, v, num_layers=2, batch_first=True),
    "MultiheadAttention": lambda w, v: nn.MultiheadAttention(w, 1, batch_first=True),
    "MultiheadAttention kdim": lambda w, v: nn.MultiheadAttention(w, 1, kdim=w + 1, vdim=v, batch_first=True),
    "MultiheadAttention bias": lambda w, v: nn.MultiheadAttention(w, 1, add_bias_kv=True, batch_first=True),
    "TransformerEncoder": lambda w, v: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(w, 1, v, batch_first=True), 2, enable_nested_tensor=False
    ),
    "weight_norm": lambda w, v: parametrizations.weight_norm(nn.Linear(w, v)),
    "weight_norm old": lambda w, v: _quiet(old_weight_norm, nn.Linear(w, v)),
    "spectral_norm": lambda w, v: parametrizations.spectral_norm(nn.Linear(w, v)),
    "spectral_norm old": lambda w, v: old_spectral_norm(nn.Linear(w, v)),
    "PReLU": lambda w, v: nn.PReLU(w),
    "ReLU": lambda w, v: nn.ReLU(),
    "Dropout": lambda w, v: nn.Dropout(),
    "Identity": lambda w, v: nn.Identity(),
    "Bare": lambda w, v: Bare({"scale": (w,), "logit_scale": ()}),
    "gains": lambda w, v: gated(w),
    "empty": lambda w, v: Bare({"nothing": (0, w), "rows": (v, w)}),
    "complex": lambda w, v: Bare({"phase": (w, v)}, "complex64"),
    "Buffers": lambda w, v: Buffers(w),
    "Numbers": lambda w, v: Numbers(w),
    "Experts": lambda w, v: Bare({"gate_up_proj": (2, 2 * v, w), "down_proj": (2, w, v)}),
    "Extra": lambda w, v: Extra(w, v),
    "Extra tensor": lambda w, v: ExtraTensor(w, v),
    "ParameterList": lambda w, v: nn.ParameterList(
        [nn.Parameter(torch.zeros(w)), nn.Parameter(torch.zeros(v))]
    ),
    "ParameterDict": lambda w, v: nn.ParameterDict(
        {"left": nn.Parameter(torch.zeros(w, v)), "right": nn.Parameter(torch.zeros(w, v))}
    ),
}


def _quiet(norm: Callable[[nn.Module], nn.Module], module: nn.Module) -> nn.Module:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return norm(module)


def run(module: nn.Module, x: Tensor) -> Tensor:
    """Forward through any module of a drawn network; ``x`` is (batch, values) and is cut to fit."""
    if isinstance(module, Residual):
        return x + fitted(chain(module, x), x.shape)
    if isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict | Part):
        return chain(module, x)
    if isinstance(module, nn.ParameterList | nn.ParameterDict):
        return shifted(module, x)
    dtype = next((p.dtype for p in module.parameters() if not p.is_complex()), torch.float32)
    out: Tensor = _call(module, x, dtype)
    return out.reshape(BATCH, -1).to(torch.float32)


def chain(module: nn.Module, x: Tensor) -> Tensor:
    """Forward through all children in order."""
    for child in module.children():
        x = run(child, x)
    return x


def fitted(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The values of ``x``, repeated or cut to a shape."""
    count = torch.Size(shape).numel()
    flat = x.flatten()
    if not flat.numel():
        return torch.zeros(shape)
    return flat.repeat(-(-count // flat.numel()))[:count].reshape(shape)


def _call(module: Any, x: Tensor, dtype: torch.dtype) -> Any:
    def fit(*shape: int) -> Tensor:
        return fitted(x, shape).to(dtype)

    match module:
        case nn.Linear():
            return module(fit(BATCH, module.in_features))
        case nn.Bilinear():
            return module(fit(BATCH, module.in1_features), fit(BATCH, module.in2_features))
        case nn.modules.conv._ConvNd():
            return module(fit(BATCH, module.in_channels, *[3] * len(module.kernel_size)))
        case nn.BatchNorm1d():
            return module(fit(BATCH, module.num_features))
        case nn.BatchNorm3d():
            return module(fit(BATCH, module.num_features, 2, 2, 2))
        case nn.BatchNorm2d() | nn.InstanceNorm2d():
            return module(fit(BATCH, module.num_features, 2, 2))
        case nn.GroupNorm():
            return module(fit(BATCH, module.num_channels, 2))
        case nn.LayerNorm() | nn.RMSNorm():
            return module(fit(BATCH, *module.normalized_shape))
        case nn.PReLU():
            return module(fit(BATCH, module.num_parameters))
        case nn.Embedding() | nn.EmbeddingBag():
            rows = (
                fitted(x, (BATCH, 3)).abs().nan_to_num(0, 0, 0).clamp(0, 1e6).long() % module.num_embeddings
            )
            return module(rows)
        case nn.RNNBase():
            return module(fit(BATCH, 2, module.input_size))[0]
        case nn.RNNCellBase():
            return module(fit(BATCH, module.input_size))
        case nn.MultiheadAttention():
            q, k, v = (fit(BATCH, 2, d) for d in (module.embed_dim, module.kdim, module.vdim))
            return module(q, k, v)[0]
        case nn.TransformerEncoder():
            return module(fit(BATCH, 2, module.layers[0].linear1.in_features))
    return module(x)
