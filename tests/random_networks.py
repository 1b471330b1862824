"""Random residual networks for Hypothesis: drawn block by block, printed as the program that they run.

A network is a list of steps, each a module applied to earlier values; `repr` prints one line per step, so that a
falsified example can be read and typed in again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

IMAGE = (2, 3, 4, 4)


class Drawn(nn.Module):
    """Steps (number of a layer, numbers of the values it takes); value 0 is the image."""

    def __init__(
        self, layers: Sequence[nn.Module], steps: Sequence[tuple[int, tuple[int, ...]]], outputs: Sequence[int]
    ) -> None:
        super().__init__()
        self.layers, self.steps, self.outputs = nn.ModuleList(layers), tuple(steps), tuple(outputs)

    def forward(self, image: Tensor) -> Any:
        values = self.values(image)
        found = tuple(values[number] for number in self.outputs)
        return found if len(found) > 1 else found[0]

    def values(self, image: Tensor) -> list[Tensor]:
        values = [image]
        for layer, inputs in self.steps:
            values.append(self.layers[layer](*(values[number] for number in inputs)))
        return values

    def __repr__(self) -> str:
        image = torch.zeros(IMAGE, dtype=next(self.parameters()).dtype)
        shapes = [tuple(value.shape) for value in self.values(image)]
        lines = [f"v0 = image {shapes[0]}"]
        for number, (layer, inputs) in enumerate(self.steps, 1):
            module = repr(self.layers[layer]).replace("\n", " ")
            arguments = ", ".join(f"v{value}" for value in inputs)
            lines.append(f"v{number} = layers.{layer}({arguments}) -> {shapes[number]}  # {module}")
        lines.append("return " + ", ".join(f"v{number}" for number in self.outputs))
        return "\n".join(["", *lines, ""])


# --- layers that torch has no module for ------------------------------------------------------------


@dataclass(eq=False)
class Function(nn.Module):
    """A function without parameters, and how it is written."""

    text: str
    function: Callable[..., Tensor]

    def __post_init__(self) -> None:
        super().__init__()

    def forward(self, *values: Tensor) -> Tensor:
        return self.function(*values)

    def __repr__(self) -> str:
        return self.text


def shuffled(x: Tensor, groups: int) -> Tensor:
    """Channel shuffle, as ShuffleNet has it."""
    n, channels, *size = x.shape
    return x.reshape(n, groups, channels // groups, *size).transpose(1, 2).reshape(n, channels, *size)


class ChannelsLastNorm(nn.Module):
    """LayerNorm over the channels of an image, as ConvNeXt has it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int, squeezed: int, linear: bool) -> None:
        super().__init__()
        self.linear = linear
        self.squeeze = nn.Linear(channels, squeezed) if linear else nn.Conv2d(channels, squeezed, 1)
        self.excite = nn.Linear(squeezed, channels) if linear else nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3), keepdim=not self.linear)
        gate = torch.sigmoid(self.excite(F.silu(self.squeeze(pooled))))
        return x * (gate[:, :, None, None] if self.linear else gate)


class Standardised(nn.Conv2d):
    """A convolution whose weights have mean zero and variance one for each output, as BiT has it."""

    def forward(self, x: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(self.weight, (1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / (deviation + 0.01), self.bias, padding=self.padding)


class LayerScale(nn.Module):
    """One factor per channel, as small as CaiT and ConvNeXt begin with."""

    def __init__(self, channels: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels, 1, 1), initial))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma

    def extra_repr(self) -> str:
        return f"{len(self.gamma)}, initial={float(self.gamma.detach()[0, 0, 0])}"


class Attention(nn.Module):
    """Self-attention over the pixels; one projection for query, key and value, or three."""

    def __init__(self, channels: int, heads: int, size: int, joint: bool, fused: bool) -> None:
        super().__init__()
        self.heads, self.fused, inner = heads, fused, heads * size
        self.joint = nn.Linear(channels, 3 * inner) if joint else None
        self.query, self.key, self.value = (None if joint else nn.Linear(channels, inner) for _ in range(3))
        self.out = nn.Linear(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        if self.joint is not None:
            parts = self.joint(tokens).chunk(3, -1)
        else:
            parts = self.query(tokens), self.key(tokens), self.value(tokens)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        if self.fused:
            mixed = F.scaled_dot_product_attention(query, key, value)
        else:
            mixed = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1) @ value
        mixed = self.out(mixed.transpose(1, 2).flatten(2))
        return mixed.transpose(1, 2).reshape_as(x)

    def extra_repr(self) -> str:
        return f"heads={self.heads}, fused={self.fused}"


# --- drawing ------------------------------------------------------------------------------------------


@dataclass
class Draft:
    """A network under construction: each step is run at once, so that shapes are known."""

    draw: Any
    tiny: bool
    mixing: bool = False
    layers: list[nn.Module] = field(default_factory=list)
    steps: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    values: list[Tensor] = field(
        default_factory=lambda: [torch.randn(IMAGE, generator=torch.Generator().manual_seed(0))]
    )

    def one_of(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def flag(self) -> bool:
        return self.draw(st.booleans())

    def apply(self, layer: nn.Module | int, *inputs: int) -> int:
        """Run a new layer, or one that is there already, on values; the number of the result."""
        if not isinstance(layer, int):
            self.layers.append(layer.eval())
            layer = len(self.layers) - 1
        with torch.no_grad():
            self.values.append(self.layers[layer](*(self.values[number] for number in inputs)))
        self.steps.append((layer, inputs))
        return len(self.values) - 1

    def shape(self, value: int) -> tuple[int, ...]:
        return tuple(self.values[value].shape)

    def width(self) -> int:
        return self.one_of(2, 3, 4) if self.tiny else self.one_of(4, 6, 8, 12)

    def activation(self, x: int) -> int:
        """A non-linearity; smooth ones for tiny networks, where a silent channel would look like a symmetry."""
        smooth = (nn.SiLU, nn.Softplus)
        rest = () if self.tiny else (nn.ReLU, nn.GELU, nn.Hardswish, nn.ReLU6)
        kind = self.one_of(*smooth, *rest, None)
        return x if kind is None else self.apply(kind(), x)

    def norm(self, x: int) -> int:
        """A normalisation or none."""
        width = self.shape(x)[1]
        kind = self.one_of("batch", "none", "layer", "group", "instance", "parametric")
        if kind == "none" or (self.shape(x)[2] < 2 and kind in ("instance", "group")):
            return x
        if kind == "group":
            return self.apply(nn.GroupNorm(self.one_of(*_divisors(width)[: max(1, width // 2)]), width), x)
        if kind == "instance" and self.flag():  # without a scale its mean would be zero whatever comes in
            return self.apply(nn.SiLU(), self.apply(nn.InstanceNorm2d(width), x))
        made = {"batch": nn.BatchNorm2d, "layer": ChannelsLastNorm, "parametric": nn.PReLU}
        return self.apply(nn.InstanceNorm2d(width, affine=True) if kind == "instance" else made[kind](width), x)

    def convolution(self, x: int, out: int, groups: int = 1, stride: int = 1) -> int:
        kernel = 1 if self.tiny else self.one_of(1, 3)
        into = self.shape(x)[1]
        layer = nn.Conv2d(into, out, kernel, stride, kernel // 2, groups=groups, bias=self.flag())
        return self.apply(layer, x)

    def narrowed_to(self, x: int, most: int) -> int:
        """The image itself or, where a tiny network's would grow too wide, a narrower one."""
        return self.convolution(x, most) if self.tiny and self.shape(x)[1] > most else x

    # Each block below takes an image (its number) and gives another.

    def plain(self, x: int) -> int:
        return self.activation(self.norm(self.convolution(x, self.width())))

    def grouped(self, x: int) -> int:
        into, out = self.shape(x)[1], self.width()
        groups = self.one_of(*(g for g in _divisors(into) if out % g == 0))
        return self.activation(self.norm(self.convolution(x, out, groups)))

    def depthwise(self, x: int) -> int:
        width = self.shape(x)[1]
        multiplier = 1 if self.tiny else self.one_of(1, 2)
        return self.activation(self.norm(self.convolution(x, multiplier * width, width)))

    def transposed(self, x: int) -> int:
        into, out = self.shape(x)[1], self.width()
        groups = self.one_of(*(g for g in _divisors(into) if out % g == 0))
        kernel = 1 if self.tiny else 3
        return self.apply(nn.ConvTranspose2d(into, out, kernel, padding=kernel // 2, groups=groups), x)

    def residual(self, x: int) -> int:
        width, y = self.shape(x)[1], x
        for _ in range(self.one_of(1, 2)):
            y = self.simple(y)
        if self.shape(y)[1] != width:
            y = self.convolution(y, width)
        return self.activation(self.add(x, y))

    def add(self, x: int, y: int) -> int:
        # Weighted, since a plain sum of two parts of one tensor may exchange the parts.
        return self.apply(Function("a + 0.5 * b", lambda a, b: a + 0.5 * b), x, y)

    def padded(self, x: int) -> int:
        """A block that widens, with the missing channels of its shortcut padded with zeros."""
        extra = self.one_of(1, 2)
        x = self.narrowed_to(x, 4 - extra)
        width = self.shape(x)[1]
        before = self.one_of(*range(extra + 1))
        stride = 1 if self.tiny or self.shape(x)[2] < 4 else self.one_of(1, 2)
        y = self.norm(self.convolution(x, width + extra, stride=stride))

        def shortcut(value: Tensor) -> Tensor:
            return F.pad(value[:, :, ::stride, ::stride], (0, 0, 0, 0, before, extra - before))

        text = f"pad(x[:, :, ::{stride}, ::{stride}], (0, 0, 0, 0, {before}, {extra - before}))"
        return self.add(y, self.apply(Function(text, shortcut), x))

    def narrowed(self, x: int) -> int:
        """A block that narrows, with a shortcut of some of the channels."""
        width = self.shape(x)[1]
        start, step = self.one_of(0, 1) if width > 1 else 0, self.one_of(1, 2)
        shortcut = self.apply(Function(f"x[:, {start}::{step}]", lambda v: v[:, start::step]), x)
        return self.add(self.convolution(x, len(range(start, width, step))), shortcut)

    def concatenated(self, x: int) -> int:
        x = self.narrowed_to(x, 2)
        y = self.narrowed_to(self.simple(x), 2)
        parts = (x, y) if self.flag() else (y, x)
        return self.apply(Function("cat([a, b], 1)", lambda a, b: torch.cat([a, b], 1)), *parts)

    def split(self, x: int) -> int:
        """One part goes through a layer of its own, as in Res2Net and ShuffleNet."""
        width = self.shape(x)[1]
        parts = self.one_of(*_divisors(width)[-2:])
        pieces = [
            self.apply(Function(f"x.chunk({parts}, 1)[{part}]", lambda v, part=part: v.chunk(parts, 1)[part]), x)
            for part in range(parts)
        ]
        chosen = self.one_of(*range(parts))
        pieces[chosen] = self.narrowed_to(self.simple(pieces[chosen]), width // parts)
        if self.flag() and parts > 1:
            pieces[chosen - 1] = self.add(*pieces[-2:]) if self.same(*pieces[-2:]) else pieces[chosen - 1]
        return self.apply(Function("cat([...], 1)", lambda *v: torch.cat(v, 1)), *pieces)

    def same(self, x: int, y: int) -> bool:
        return x != y and self.shape(x) == self.shape(y)

    def shuffle(self, x: int) -> int:
        groups = self.one_of(*_divisors(self.shape(x)[1]))
        return self.apply(Function(f"shuffled(x, {groups})", lambda v: shuffled(v, groups)), x)

    def halves(self, x: int) -> int:
        """A gated linear unit."""
        if self.shape(x)[1] % 2:
            return x
        return self.apply(Function("glu(x, 1)", lambda v: F.glu(v, 1)), x)

    def pieces(self, x: int) -> int:
        """Two parts of unequal size, exchanged."""
        width = self.shape(x)[1]
        size = self.one_of(*range(1, width))
        text = f"cat(reversed(x.split([{size}, {width - size}], 1)), 1)"
        return self.apply(Function(text, lambda v: torch.cat(v.split([size, width - size], 1)[::-1], 1)), x)

    def rolled(self, x: int) -> int:
        shift = self.one_of(*range(1, self.shape(x)[1]))
        return self.apply(Function(f"x + 0.5 * x.roll({shift}, 1)", lambda v: v + 0.5 * v.roll(shift, 1)), x)

    def flipped(self, x: int) -> int:
        return self.apply(Function("x + 0.5 * x.flip(1)", lambda v: v + 0.5 * v.flip(1)), x)

    def maxout(self, x: int) -> int:
        """The largest of neighbouring channels."""
        width = self.shape(x)[1]
        parts = self.one_of(*_divisors(width)[1:])
        text = f"x.unflatten(1, (-1, {parts})).amax(2)"
        return self.apply(Function(text, lambda v: v.unflatten(1, (-1, parts)).amax(2)), x)

    def across(self, x: int) -> int:
        """Something taken over all channels at each position."""
        kinds = {
            "x.softmax(1)": lambda v: v.softmax(1),
            "normalize(x, dim=1)": lambda v: F.normalize(v, dim=1),
            "x * sigmoid(x.amax(1, True))": lambda v: v * v.amax(1, True).sigmoid(),
            "x * sigmoid(x.mean(1, True))": lambda v: v * v.mean(1, True).sigmoid(),
        }
        text = self.one_of(*kinds)
        return self.apply(Function(text, kinds[text]), x)

    def normed_weights(self, x: int) -> int:
        """A convolution whose weights are standardised, or divided by their norm."""
        arguments = self.shape(x)[1], self.width(), self.one_of(1, 3)
        padding = arguments[2] // 2
        if self.flag():
            return self.activation(self.apply(Standardised(*arguments, padding=padding), x))
        layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(*arguments, padding=padding))
        return self.activation(self.apply(layer, x))

    def gate(self, x: int) -> int:
        return self.apply(Gate(self.shape(x)[1], self.one_of(2, 3), self.flag()), x)

    def layer_scale(self, x: int) -> int:
        y = self.simple(x)
        y = self.apply(LayerScale(self.shape(y)[1], self.one_of(1.0, 1e-6)), y)
        return self.add(x, y) if self.same(x, y) else y

    def attention(self, x: int) -> int:
        positions = self.values[x].flatten(2)
        if torch.allclose(positions, positions[..., :1]):  # any weights do there: heads may exchange channels
            return self.simple(x)
        heads, size = (2, 2) if self.tiny else (self.one_of(1, 2, 3), self.one_of(2, 4))
        joint = not self.tiny and self.flag()  # an axis of 12 has too many permutations to try
        return self.add(x, self.apply(Attention(self.shape(x)[1], heads, size, joint, self.flag()), x))

    def again(self, x: int) -> int:
        """A layer that ran before, once more, on an image that it accepts."""
        fitting = [
            layer
            for layer, inputs in self.steps
            if len(inputs) == 1
            and self.shape(inputs[0]) == self.shape(x)
            and next(self.layers[layer].parameters(), None) is not None
        ]
        return self.apply(self.one_of(*fitting), x) if fitting else self.plain(x)

    def skip(self, x: int) -> int:
        """An addition of, or a product with, any earlier value of the same shape."""
        fitting = [value for value in range(1, len(self.values)) if self.same(x, value)]
        if not fitting:
            return self.plain(x)
        other = self.one_of(*fitting)
        if self.flag():
            return self.add(x, other)
        return self.apply(Function("a * sigmoid(b)", lambda a, b: a * b.sigmoid()), x, other)

    def pooled(self, x: int) -> int:
        if self.shape(x)[2] < 2:
            return x
        return self.apply(self.one_of(nn.AvgPool2d(2), nn.MaxPool2d(2), nn.MaxPool2d(3, 1, 1)), x)

    def simple(self, x: int) -> int:
        """One of the blocks without a branch."""
        names = ["plain", "grouped", "depthwise", "gate", "transposed", "again"]
        return getattr(self, self.one_of(*names))(x)

    def block(self, x: int) -> int:
        names = ["residual", "plain", "grouped", "depthwise", "concatenated", "split", "shuffle", "padded", "skip"]
        names += ["gate", "layer_scale", "again", "halves", "narrowed", "transposed", "attention", "pooled"]
        if self.mixing:
            names += ["across", "normed_weights"]
            names += ["pieces", "rolled", "flipped", "maxout"] if self.shape(x)[1] > 1 else []
        y = self.narrowed_to(getattr(self, self.one_of(*names))(x), 4)
        return y if self.shape(y)[1] <= 32 else self.convolution(y, 32)

    def head(self, x: int) -> int:
        """Flatten or pool, hidden layers or none, and a linear layer."""
        if self.flag():
            x = self.apply(nn.Flatten(), x)
        else:
            x = self.apply(Function("x.mean((2, 3))", lambda v: v.mean((2, 3))), x)
        if self.flag():
            x = self.apply(nn.Linear(self.shape(x)[1], self.width()), x)
            x = self.apply(self.one_of(nn.LayerNorm, nn.BatchNorm1d)(self.shape(x)[1]), x)
            x = self.apply(nn.SiLU(), x)
        return self.apply(nn.Linear(self.shape(x)[1], 2), x)


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


@st.composite
def random_networks(draw: Any, tiny: bool = False, mixing: bool = False) -> Drawn:
    """A network with one to three blocks if tiny (no axis longer than 4, pixels apart), else up to seven.

    `mixing`: with blocks that mix channels by their positions or over all of them. Not all groups of such networks are
    found: some are fixed by their proof.
    """
    torch.manual_seed(0)
    draft = Draft(draw, tiny, mixing)
    x = draft.plain(0)
    ends = []
    for _ in range(draw(st.integers(1, 3 if tiny else 7))):
        x = draft.block(x)
        ends.append(x)
    heads = [x]
    if len(ends) > 1 and draft.flag():  # a second head on an earlier value: several outputs
        heads.insert(0, draft.one_of(*ends[:-1]))
    return Drawn(draft.layers, draft.steps, [draft.head(value) for value in heads])
