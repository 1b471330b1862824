"""A picture of a matching: its block matrix, and the correlation of matched channels by depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from depfuse.align.description import MatchedGroup, Matching
from depfuse.report.plots import MATCHED, NAIVE, save

SIDE = 5.2  # inches of a matrix
LONGEST_NAME = 28  # characters
NAMED = 40  # groups up to which each block has its name


def draw_matchings(
    matchings: Mapping[str, Matching], reference: str, names: Sequence[str] | None, path: Path, kind: str = "png"
) -> None:
    """Draw the matching of each parent in a row, and write the picture to `path`.

    On the left the permutation or plan, one block per group along the diagonal with lines between the blocks; in the
    middle the cost of each group before and after matching; on the right the correlation of matched channels by depth.

    Parameters
    ----------
    matchings
        Name of a parent -> its matching.
    reference
        Name of the parent whose channel order is kept.
    names
        Groups to draw; all where None.
    kind
        png, pdf or svg.
    """
    chosen = {
        parent: Matching(
            [group for group in matching.groups if names is None or group.name in names],
            [tap for tap in matching.taps if names is None or tap.group in names],
        )
        for parent, matching in matchings.items()
    }
    figure = Figure(figsize=(3 * SIDE, (SIDE + 0.6) * len(chosen)), layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(len(chosen), 3, squeeze=False, width_ratios=(1.15, 0.9, 0.95))
    for axes, (parent, matching) in zip(rows, chosen.items(), strict=True):
        _draw_matrix(axes[0], matching.groups, parent, reference)
        _draw_costs(axes[1], matching.groups)
        _draw_depths(axes[2], matching)
    handles, labels = rows[-1][2].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    save(figure, path, kind)


def _draw_matrix(axes: Axes, groups: Sequence[MatchedGroup], parent: str, reference: str) -> None:
    sizes = [group.channels for group in groups]
    ends = np.cumsum([0, *sizes])
    total = int(ends[-1])
    # Single pixels of a large permutation would vanish: each entry covers a few of them.
    reach = total // 1000
    image = np.zeros((total, total))
    for group, start in zip(groups, ends, strict=False):
        block = group.matrix.numpy()
        block = block / max(float(block.max()), 1e-300)
        image[start : start + len(block), start : start + len(block)] = _thickened(block, reach)
    axes.imshow(image, cmap="Blues", vmin=0.0, vmax=1.0, interpolation="nearest" if total <= 400 else "antialiased")
    width = 0.5 if len(groups) <= NAMED else 0.2
    for end in ends:
        axes.axhline(end - 0.5, color="0.55", linewidth=width)
        axes.axvline(end - 0.5, color="0.55", linewidth=width)
    places = (ends[:-1] + ends[1:] - 1) / 2
    if len(groups) <= NAMED:
        gap = total / 46  # lines of text that fit beside the matrix
        shown, last = [], -np.inf
        for place, group in zip(places, groups, strict=True):
            if place - last >= gap:
                shown.append((place, group))
                last = place
        axes.set_yticks(
            [place for place, _ in shown], [f"{_short(g.name)} ({g.channels})" for _, g in shown], fontsize=6
        )
    axes.set_xlabel(f"channels of {parent}", fontsize="small")
    axes.set_ylabel(f"channels of {reference}", fontsize="small")
    axes.set_xticks([])
    axes.set_title(f"matching of {len(groups)} group{'s' * (len(groups) != 1)}, {total:,} channels", fontsize="medium")


def _thickened(block: np.ndarray, reach: int) -> np.ndarray:
    result = block
    for axis in (0, 1):
        padded = np.pad(result, [(reach, reach) if a == axis else (0, 0) for a in (0, 1)])
        shifted = [np.take(padded, np.arange(len(block)) + shift, axis) for shift in range(2 * reach + 1)]
        result = np.max(shifted, axis=0)
    return result


def _draw_costs(axes: Axes, groups: Sequence[MatchedGroup]) -> None:
    """Draw costs before and after, by activations where they were recorded, relative to those before."""
    watched = any(group.activation_cost is not None for group in groups)
    costs = [group.activation_cost if watched else group.weight_cost for group in groups]
    places = np.arange(len(groups))
    for number, (label, colour) in enumerate((("as they stand", NAIVE), ("matched", MATCHED))):
        values = [np.nan if cost is None else cost[number] for cost in costs]
        axes.barh(places + (number - 0.5) * 0.38, values, height=0.38, color=colour, label=label)
    axes.set_ylim(len(groups) - 0.4, -0.6)
    if len(groups) <= NAMED:
        axes.set_yticks(places, [_short(group.name) for group in groups], fontsize=6)
    else:
        axes.set_ylabel("group, in the order of the network", fontsize="small")
    axes.set_xlabel(f"{'activation cost' if watched else 'squared weight distance'} per channel", fontsize="small")
    axes.set_title("cost before and after matching", fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_depths(axes: Axes, matching: Matching) -> None:
    depths = np.arange(len(matching.taps))
    before = [float(tap.before.mean()) for tap in matching.taps]
    after = [float(tap.after.mean()) for tap in matching.taps]
    bands = [np.quantile(tap.after.numpy(), (0.1, 0.9)) for tap in matching.taps]
    if bands:
        low, high = np.array(bands).T
        axes.fill_between(depths, low, high, color=MATCHED, alpha=0.18, linewidth=0, label="10 % to 90 % of channels")
    axes.plot(depths, after, color=MATCHED, marker="o", markersize=4, label="matched")
    axes.plot(depths, before, color=NAIVE, marker="s", markersize=4, label="as they stand")
    step = max(1, -(-len(depths) // NAMED))
    axes.set_xticks(
        depths[::step], [_short(tap.module or "network") for tap in matching.taps[::step]], rotation=90, fontsize=6
    )
    axes.set_ylabel("correlation of matched channels", fontsize="small")
    axes.set_title("correlation by depth", fontsize="medium")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"…{name[1 - LONGEST_NAME :]}"
