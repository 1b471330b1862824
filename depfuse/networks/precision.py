"""Floating-point types of networks: computed in float32, given back as they came."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from depfuse.networks.copying import evaluation_copy, unwrap

EXACT = (torch.float32, torch.float64)
DOUBLED = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}


def _grouped_product(
    a: Tensor, b: Tensor, offs: Tensor | None = None, bias: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> Tensor:
    """Multiply group by group as `torch.nn.functional.grouped_mm` does, which has no float64.

    Groups are the first axis of an operand of three; of one of two they are parts of an axis, up to `offs`: of the rows
    of `a`, the columns of `b`, or what is summed over where both have two.
    """
    if offs is None:
        product = a @ b
    else:
        ends = offs.tolist()
        parts = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
        if a.dim() == 2 and b.dim() == 2:
            product = torch.stack([a[:, part] @ b[part] for part in parts])
        elif a.dim() == 2:
            product = torch.cat([a[part] @ own for part, own in zip(parts, b, strict=True)])
            product = nn.functional.pad(product, (0, 0, 0, len(a) - len(product)))
        else:
            product = torch.cat([own @ b[:, part] for part, own in zip(parts, a, strict=True)], dim=1)
            product = nn.functional.pad(product, (0, b.shape[1] - product.shape[1]))
    return product if bias is None else product + bias


_GROUPED = (getattr(nn.functional, "grouped_mm", None), getattr(torch, "_grouped_mm", None))
_CASTS: dict[Callable[..., Any], Callable[..., Any]] = {
    **{function: _grouped_product for function in _GROUPED if function is not None},
    torch.Tensor.half: torch.Tensor.double,
    torch.Tensor.bfloat16: torch.Tensor.double,
    torch.Tensor.float: torch.Tensor.double,
    torch.Tensor.chalf: torch.Tensor.cdouble,  # type: ignore[attr-defined]
    torch.Tensor.cfloat: torch.Tensor.cdouble,  # type: ignore[attr-defined]
}


class DoublePrecision(TorchFunctionMode):
    """Compute in float64, while active, what a forward pass computes in another floating-point type.

    Types that are written into the code (`x.float()`, `softmax(dtype=torch.float32)`, `torch.arange(4) / 4`) are
    replaced, so that no result is rounded to them: in real numbers the function is the same.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run the function with wider types, and widen what it makes."""
        kwargs = kwargs or {}
        writes = getattr(func, "__name__", "").endswith("_")  # in place, or an access to an attribute
        if any(_is_narrow(leaf, not writes) for leaf in tree_leaves((args, kwargs))):
            args, kwargs = tree_map(lambda leaf: _wider(leaf) if _is_narrow(leaf, not writes) else leaf, (args, kwargs))
        result = _CASTS.get(func, func)(*args, **kwargs)
        if isinstance(result, Tensor):
            return result if writes else _wider(result)
        return tree_map(_wider, result) if isinstance(result, (tuple, list)) and not writes else result


def _is_narrow(value: Any, tensors: bool) -> bool:
    """Tell whether an argument is, or names, a type narrower than float64."""
    if isinstance(value, Tensor):
        return tensors and value.dtype in DOUBLED
    return (isinstance(value, torch.dtype) and value in DOUBLED) or _wider(value) is not value


def _wider(value: Any) -> Any:
    """Convert a tensor, a type or the name of a type to float64."""
    if isinstance(value, Tensor):
        return value.to(DOUBLED[value.dtype]) if value.dtype in DOUBLED else value
    if isinstance(value, torch.dtype):
        return DOUBLED.get(value, value)
    if isinstance(value, str) and value.endswith(("FloatTensor", "HalfTensor", "BFloat16Tensor")):
        return value.replace("BFloat16", "Double").replace("Float", "Double").replace("Half", "Double")
    return value


def in_full_precision(models: Sequence[nn.Module]) -> Sequence[nn.Module]:
    """Copy networks to float32 where any is in half precision or of several types; others are given as they are.

    Wrapped ones come without their wrappers, see `unwrap`.
    """
    inner = [unwrap(model) for model in models]
    if any(own is not model for own, model in zip(inner, models, strict=True)):
        models = inner
    types = {tensor.dtype for model in models for tensor in model.state_dict().values() if tensor.is_floating_point()}
    if len(types) <= 1 and types <= set(EXACT):
        return models
    return [evaluation_copy(model, torch.float32) for model in models]


def with_types_of(network: nn.Module, like: nn.Module) -> nn.Module:
    """Convert a network's tensors in place to the types that those of the same names have in another one."""
    types = {key: tensor.dtype for key, tensor in unwrap(like).state_dict().items()}
    for module_name, module in network.named_modules():
        prefix = f"{module_name}." if module_name else ""
        for name, parameter in module.named_parameters(recurse=False):
            kind = types.get(prefix + name, parameter.dtype)
            if kind != parameter.dtype:
                parameter.data = parameter.data.to(kind)
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(types.get(prefix + name, buffer.dtype)))
    return network
