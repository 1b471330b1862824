"""A picture of a network's channels: which group each layer's channels belong to."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import nn

from depfuse.groups import ChannelGroups, Slot
from depfuse.networks.forward import Example, run_network
from depfuse.networks.running import evaluating, modules_in_order
from depfuse.report.plots import save

FIXED = (0.80, 0.80, 0.80)  # colour (RGB) of channels in fixed groups
LAYERS_PER_ROW = 44
LEGEND = 15  # entries
LONGEST_NAME = 32  # characters
_READS, _GIVES = 0, 1  # sides of a layer, and the roles of the slots on them
_SIDES = {"consumes": _READS, "produces": _GIVES}


@dataclass
class _Layer:
    """A weight, and the group that each position of its input and of its output belongs to; -1 for none."""

    key: str
    sides: tuple[np.ndarray, np.ndarray]


def draw_channels(
    title: str, model: nn.Module, example: Example, groups: ChannelGroups, path: Path, kind: str = "png"
) -> None:
    """Draw each layer's channels, coloured by group, in the order of computation, and write the picture to `path`.

    Every layer is a pair of bars, its input and its output, whose height is the square root of the number of
    positions; position 0 is at the bottom. A residual stream that several groups share is a bar of several colours.
    Fixed positions are grey. Layers are in rows of 44.

    Parameters
    ----------
    title
        Name of the network.
    model
        The network; run once, to see in which order its layers come.
    example
        An input (1, C, H, W).
    groups
        Its groups.
    kind
        png, pdf or svg.
    """
    layers = _layers(model, example, groups)
    colours = group_colours(len(groups.groups))
    for number, group in enumerate(groups.groups):
        if group.fixed is not None:
            colours[number] = FIXED
    rows = max(1, -(-len(layers) // LAYERS_PER_ROW))
    per_row = -(-len(layers) // rows)
    width = max(8.0, 1.6 + 0.27 * per_row)
    figure = Figure(figsize=(width, 1.4 + 2.9 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    highest = max((len(side) ** 0.5 for layer in layers for side in layer.sides), default=1.0)
    for row, axes in enumerate(figure.subplots(rows, 1, squeeze=False)[:, 0]):
        _draw_row(axes, layers[row * per_row : (row + 1) * per_row], colours, highest, per_row)
    figure.suptitle(
        f"{title}: {groups.count:,} groups, {groups.free_channels:,} channels\n"
        "one colour per group; of each layer, left the channels that it reads, right those that it gives",
        fontsize="small",
    )
    _add_legend(figure, groups, colours, width)
    save(figure, path, kind)


def group_colours(count: int) -> list[tuple[float, float, float]]:
    """Choose colours (red, green, blue) that differ most between consecutive groups."""
    golden = (5**0.5 - 1) / 2
    shades = ((0.85, 0.80), (0.55, 0.95), (0.95, 0.55))  # saturation, value
    # Hues come close to one another again after 55, 89, 144, ... steps: there the shade differs.
    shade = [shades[(number + number // 55) % 3] for number in range(count)]
    return [colorsys.hsv_to_rgb((0.58 + golden * number) % 1.0, *shade[number]) for number in range(count)]


def _layers(model: nn.Module, example: Example, groups: ChannelGroups) -> list[_Layer]:
    """List the weights whose input or output has channels, in the order in which their modules run."""
    state = model.state_dict()
    sides: dict[str, list[np.ndarray]] = {}
    numbered = [(slot, number) for number, group in enumerate(groups.groups) for slot in group.slots]
    # Where blocks may be exchanged and channels permuted inside them, the channels are drawn over their blocks.
    for slot, number in sorted(numbered, key=lambda pair: -pair[0].index.shape[1]):
        if slot.role in _SIDES and state[slot.key].dim() > 1:
            both = sides.setdefault(slot.key, [np.full(0, -1), np.full(0, -1)])
            _colour(both, slot, state[slot.key].shape, number)
    with torch.no_grad(), evaluating(model, auxiliary=groups.auxiliary):
        order = {name: place for place, name in enumerate(modules_in_order(model, lambda: run_network(model, example)))}
    keys = list(state)
    first = sorted(sides, key=lambda key: (_place(key, order), keys.index(key)))
    return [_Layer(key, (sides[key][_READS], sides[key][_GIVES])) for key in first]


def _colour(sides: list[np.ndarray], slot: Slot, shape: Sequence[int], number: int) -> None:
    """Enter a group into the positions of one side; blocks of a grouped convolution's input are stacked."""
    side, size, start = _SIDES[slot.role], shape[slot.axis], 0
    if slot.within is not None:
        rows = len(slot.within[1])
        start = int(slot.within[1].min()) // rows * size
        size *= max(1, shape[slot.within[0]] // rows)
    if len(sides[side]) != size:
        sides[side] = np.full(size, -1)
    sides[side][start + slot.index.reshape(-1).numpy()] = number


def _place(key: str, order: dict[str, int]) -> int:
    """Return when the module that owns a tensor ran, or else the nearest one above it that did."""
    name = key
    while name:
        name = name.rpartition(".")[0]
        if name in order:
            return order[name]
    return len(order)


def _draw_row(
    axes: Axes, layers: Sequence[_Layer], colours: Sequence[tuple[float, float, float]], highest: float, places: int
) -> None:
    corners, faces = [], []
    for place, layer in enumerate(layers):
        for side, left, right in ((_READS, 0.10, 0.36), (_GIVES, 0.40, 0.90)):
            positions = layer.sides[side]
            scale = 1.0 / max(1.0, len(positions) ** 0.5)
            for start, end, number in _runs(positions):
                low, high, x0, x1 = start * scale, end * scale, place + left, place + right
                corners.append([(x0, low), (x1, low), (x1, high), (x0, high)])
                faces.append(FIXED if number < 0 else colours[number])
    axes.add_collection(PolyCollection(corners, facecolors=faces, edgecolors="none"))
    axes.set_xlim(0, max(places, 1))
    axes.set_ylim(0, 1.03 * highest)
    names = _short([layer.key.removesuffix(".weight") for layer in layers])
    axes.set_xticks([place + 0.5 for place in range(len(layers))], names, rotation=90, fontsize=6)
    sizes = [4**power for power in range(1, 10) if 0.08 * highest <= 2**power <= 0.92 * highest]
    sizes.append(round(highest**2))
    axes.set_yticks([size**0.5 for size in sizes], [f"{size:,}" for size in sizes], fontsize=6)
    axes.set_ylabel("channels", fontsize=7)
    axes.tick_params(length=2)
    axes.spines[["top", "right"]].set_visible(False)


def _short(names: Sequence[str]) -> list[str]:
    """Shorten names: leave out the parts that each shares with the one before, and cut the ends of long ones."""
    short, before = list(names[:1]), names[0].split(".") if names else []
    for name in names[1:]:
        parts = name.split(".")
        same = next((n for n, pair in enumerate(zip(parts, before, strict=False)) if pair[0] != pair[1]), 0)
        same = min(same, len(parts) - 1)
        short.append("." * bool(same) + ".".join(parts[same:]))
        before = parts
    return [name if len(name) <= LONGEST_NAME else f"…{name[1 - LONGEST_NAME :]}" for name in short]


def _runs(positions: np.ndarray) -> list[tuple[int, int, int]]:
    """List (start, end, group) of each stretch of positions that belong to one group."""
    if not len(positions):
        return []
    ends = np.append(np.flatnonzero(np.diff(positions)) + 1, len(positions))
    starts = np.append(0, ends[:-1])
    return [(int(s), int(e), int(positions[s])) for s, e in zip(starts, ends, strict=True)]


def _add_legend(
    figure: Figure, groups: ChannelGroups, colours: Sequence[tuple[float, float, float]], width: float
) -> None:
    """Name the groups that most tensors belong to."""
    free = [number for number, group in enumerate(groups.groups) if group.fixed is None]
    layers = {groups.groups[number].name.partition("#")[0]: number for number in reversed(free)}  # one of several alike
    chosen = sorted(sorted(layers.values(), key=lambda number: -len(groups.groups[number].slots))[:LEGEND])
    entries = [
        Patch(color=colours[number], label=f"{groups.groups[number].name} ({groups.groups[number].size})")
        for number in chosen
    ]
    if len(free) > len(chosen):
        entries.append(Patch(color="none", label=f"and {len(free) - len(chosen):,} more groups"))
    if len(free) < len(groups.groups):
        entries.append(Patch(color=FIXED, label="fixed"))
    longest = max(len(str(entry.get_label())) for entry in entries) if entries else 1
    columns = max(1, min(len(entries), int(width / (0.055 * longest + 0.55))))
    figure.legend(handles=entries, loc="outside lower center", ncols=columns, frameon=False, fontsize=6)
