"""Autograd's record of an operation: its name, shapes and saved dimensions."""

from __future__ import annotations

import re
from typing import Any

from torch.autograd.function import BackwardCFunction

IN_PLACE_NAMES = re.compile(r"Backward\d*$")
LIBRARY = "torch._library.autograd"  # makes the functions of operators that a library registers
REGISTERED = re.compile(r"GeneratedBackwardFor_(\w+)_default$")

ENTRY_BY_ENTRY = """
    Add Sub Mul Div Pow Neg Abs Sign Exp Expm1 Log Log1P Sqrt Rsqrt Square Reciprocal Sin Cos Erf Tanh Sigmoid
    LogSigmoid Relu Relu6 Hardtanh Hardswish Hardsigmoid Silu Gelu Elu Celu Selu Softplus Softsign Mish
    LeakyRelu PreluKernel Threshold Clamp ClampMin ClampMax Where MaskedFill NativeDropout FusedDropout
    Maximum Minimum Lerp Addcmul Addcdiv Clone ToCopy Alias Copy Contiguous Hardshrink Softshrink
    RreluWithNoise Floor Ceil Round Detach Fmod Remainder NanToNum Rsub Tan Atan Asin Acos Sinh Cosh Asinh
    Acosh Atanh Atan2 Log2 Log10 Exp2 Logaddexp Logaddexp2 Hypot Xlogy Trunc Frac Sgn Angle Erfc Erfinv Sinc
    Lgamma Digamma Logit I0 Conj ConjPhysical ResolveConj ResolveNeg Complex Polar Real Imag Copysign Rrelu
    FakeQuantizePerTensorAffineCachemask
""".split()
RESHAPES = """
    View UnsafeView ReshapeAlias Reshape Squeeze Unsqueeze Flatten Unflatten ViewCopy
""".split()
SUMS = """
    Mean Sum Amax Amin Max Min Var Std VarMean StdMean LinalgVectorNorm Norm Logsumexp Prod
""".split()


def operation_name(operation: Any) -> str:
    """Return an autograd function's name without its suffix: 'ConvolutionBackward0' -> 'Convolution'.

    A user's own `torch.autograd.Function` may have the name of any of torch's, and is distinguished from it. Operators
    that a library registers are called by its name and theirs: 'torchvision_roi_align'.
    """
    if isinstance(operation, BackwardCFunction):
        name = IN_PLACE_NAMES.sub("", type(operation).__name__)
        registered = REGISTERED.match(name)
        if registered and getattr(operation, "_forward_cls", type(operation)).__module__ == LIBRARY:
            return registered[1]
        return f"the autograd.Function {name}"
    return IN_PLACE_NAMES.sub("", operation.name().rsplit("::", 1)[-1])


def result_shape(operation: Any, number: int = 0) -> tuple[int, ...]:
    """Return the shape of an operation's result."""
    return tuple(int(size) for size in operation._input_metadata[number].shape)


def signed(value: int) -> int:
    """Convert a dimension that autograd saved as an unsigned 64-bit integer back to a signed one."""
    return value - (1 << 64) if value >= 1 << 63 else value


def saved_dims(operation: Any, name: str, rank: int) -> tuple[int, ...]:
    """Return a saved dimension or list of dimensions, counted from the front; all of them where none is saved."""
    dims = getattr(operation, f"_saved_{name}", None)
    if dims is None:
        return tuple(range(rank))
    values = (dims,) if isinstance(dims, int) else tuple(dims)
    return tuple(signed(v) % max(rank, 1) for v in values) or tuple(range(rank))
