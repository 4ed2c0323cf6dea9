"""Tensors that are more than a view: sparse, quantized, lazily conjugated. Follows ``torch/_utils.py``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from ckptdoctor.formats.base import Recipe
from ckptdoctor.formats.tensors import numbers
from ckptdoctor.trees import TensorSpec

if TYPE_CHECKING:
    import torch

Parts = Mapping[str, "torch.Tensor"]


def build(
    recipe: Recipe, spec: TensorSpec, plain: torch.Tensor | None, parts: Parts, dtype: torch.dtype
) -> torch.Tensor:
    """The tensor of a recipe; raises ValueError for kinds that cannot be made again."""
    if recipe.kind == "lazy" and plain is not None:
        return _lazy(recipe, plain)
    if recipe.kind == "quantized" and plain is not None:
        return _quantized(recipe, spec, plain, parts, dtype)
    if recipe.kind.startswith("sparse_"):
        return _sparse(recipe, spec, parts)
    if recipe.kind == "meta":
        import torch

        return torch.empty(spec.shape, dtype=dtype, device="meta")
    raise ValueError(f"a {recipe.kind} tensor needs the class it was saved with")


def _lazy(recipe: Recipe, plain: torch.Tensor) -> torch.Tensor:
    made = plain.conj() if recipe.values.get("conj") else plain
    return made._neg_view() if recipe.values.get("neg") else made


def _sparse(recipe: Recipe, spec: TensorSpec, parts: Parts) -> torch.Tensor:
    import torch

    if recipe.kind == "sparse_coo":
        coalesced = recipe.values.get("coalesced")
        return torch.sparse_coo_tensor(
            parts["indices"],
            parts["values"],
            spec.shape,
            check_invariants=True,
            is_coalesced=coalesced if isinstance(coalesced, bool) else None,
        )
    return torch.sparse_compressed_tensor(
        parts["compressed_indices"],
        parts["plain_indices"],
        parts["values"],
        spec.shape,
        layout=getattr(torch, recipe.kind),
        check_invariants=True,
    )


def _quantized(
    recipe: Recipe, spec: TensorSpec, plain: torch.Tensor, parts: Parts, dtype: torch.dtype
) -> torch.Tensor:
    import torch

    scheme = recipe.values.get("scheme")
    made: torch.Tensor
    if scheme == "per_tensor_affine":
        made = torch._empty_affine_quantized(
            spec.shape,
            scale=numbers(recipe.values["scale"]),
            zero_point=numbers(recipe.values["zero_point"]),
            dtype=dtype,
        )
    elif scheme in ("per_channel_affine", "per_channel_affine_float_qparams"):
        axis = cast(int, numbers(recipe.values["axis"]))
        if type(axis) is not int or not 0 <= axis < len(spec.shape):
            raise ValueError(f"its axis {axis} is outside its {len(spec.shape)} dimensions")
        scales, zeros = (_vector(recipe, parts, name, spec.shape[axis]) for name in ("scales", "zero_points"))
        made = torch._empty_per_channel_affine_quantized(
            spec.shape, scales=scales, zero_points=zeros, axis=axis, dtype=dtype
        )
    else:
        raise ValueError(f"its scheme {scheme!r} is unknown")
    return made.set_(plain.untyped_storage(), spec.offset, spec.shape, plain.stride())


def _vector(recipe: Recipe, parts: Parts, name: str, length: int) -> torch.Tensor:
    import torch

    if name in parts:
        values = parts[name]
    else:
        floating = recipe.values.get("scheme") == "per_channel_affine_float_qparams"
        kind = torch.float if floating else torch.double if name == "scales" else torch.long
        values = torch.tensor(numbers(recipe.values[name]), dtype=kind)
    if values.numel() != length:
        raise ValueError(f"it has {values.numel()} {name} for {length} channels")
    return values
