"""Seconds and memory of a fusion against width, depth, parents and images, and what follows for large networks.

    python -m experiments run scaling --seeds 0,1,2 --threads 1

Half an hour; one thread. CIFAR ResNets with random weights, matched by activations (cosine, exact assignment),
averaged, BatchNorm reset; every cell is a process of its own. Seconds are the processor's; `forward` is what the bare
forward passes of the parents take, a part of `matching`. Exponents have their standard errors.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from depfuse import Recipe, find_groups, prove_groups
from depfuse.align import Coupling, Couplings
from depfuse.align.problem import MatchingProblem
from depfuse.align.solvers import load_solver
from depfuse.align.statistics.moments import collect_moments
from depfuse.align.statistics.taps import AT_ONCE
from depfuse.align.transport import assigned
from depfuse.data import Loader, Preprocessing, Split
from depfuse.errors import RecipeError
from depfuse.merge import average
from depfuse.models import build_network
from depfuse.renorm import renormalise
from experiments.lib.cells import Cell, Cells
from experiments.lib.command import numbers
from experiments.lib.measurement import Measurement
from experiments.lib.own_process import apart, whole
from experiments.lib.parents.trained import thin_resnet
from experiments.lib.plots import draw_intervals
from experiments.lib.power_law import PowerLaw, Rates, Work
from experiments.lib.tables import Estimate, markdown
from experiments.lib.timing import Watch, pass_forward, peak_mib

KEYS = ("network", "parents", "images", "side", "seed")
STEPS = ("groups", "forward", "matching", "assignment", "merge", "renorm")
VALUES = (*STEPS, "all", "all_clock", "memory", "forward_flops", "covariance_flops")
ASSIGNED = "channels"  # a cell of this network is an assignment alone, of as many channels as `side`
CHECK = "torchvision:resnet50"
LARGE = "ResNet50, 224 pixels"
CHECKED = 20  # images that it is measured with
IMAGES_OF_ESTIMATE = 2000


def _cell(network: str, parents: int = 2, images: int = 500, side: int = 32) -> dict[str, Any]:
    return {"network": network, "parents": parents, "images": images, "side": side}


def _resnet(blocks: int = 3, width: float = 1.0) -> str:
    return thin_resnet(blocks, width, in_channels=3)


Axes = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Axis -> value along it -> cell."""
AXES: Axes = {
    "width": {str(width): _cell(_resnet(width=width)) for width in (0.5, 1.0, 2.0, 4.0)},
    "depth": {str(6 * blocks + 2): _cell(_resnet(blocks)) for blocks in (3, 9, 18)},
    "parents": {str(parents): _cell(_resnet(), parents=parents) for parents in (2, 4, 8)},
    "images": {str(images): _cell(_resnet(width=0.5), images=images) for images in (500, 2000, 6000, 20000)},
    "channels assigned": {str(size): _cell(ASSIGNED, images=0, side=size) for size in (512, 1024, 2048, 4096)},
    LARGE: {str(CHECKED): _cell(CHECK, images=CHECKED, side=224)},
}


# --- one cell --------------------------------------------------------------------------------------


def measure(cell: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a cell, from a process of its own: its peak of memory is that of nothing else."""
    return whole(apart(figures, cell, fork=True))


def figures(cell: Mapping[str, Any]) -> Iterator[dict[str, float]]:
    """Yield seconds of the processor by step, and the growth of this process's peak memory in MiB."""
    yield _assignment(int(cell["side"]), int(cell["seed"])) if cell["network"] == ASSIGNED else _corridor(cell)


def _corridor(cell: Mapping[str, Any]) -> dict[str, float]:
    networks = []
    for number in range(int(cell["parents"])):
        torch.manual_seed(1000 * int(cell["seed"]) + number)
        networks.append(build_network(cell["network"]).eval())
    images, side = int(cell["images"]), int(cell["side"])
    pixels = torch.randint(0, 256, (images, 3, side, side), dtype=torch.uint8)
    loader = Loader(Split(pixels, torch.zeros(images, dtype=torch.int64)), Preprocessing(), batch_size=250)
    example = torch.rand(1, 3, side, side)
    recipe = Recipe(refit="none", distance="cosine")
    watch = Watch(clock=time.process_time)
    before, started = peak_mib(), time.perf_counter()
    with watch.step("groups"):
        groups = prove_groups(networks[0], find_groups(networks[0], example), example)
    with watch.step("matching"):
        moments = collect_moments(networks, groups, loader, recipe.align.taps)
    couplings: list[Couplings] = [{group.name: Coupling.identity(group.size) for group in groups.free}]
    with watch.step("assignment"):
        for own, network in zip(moments, networks[1:], strict=True):
            problem = MatchingProblem(groups, (networks[0], network), recipe.align, own, loader)
            couplings += [found.couplings for found in load_solver(recipe.align.solver.name).solve(problem)]
    with watch.step("merge"):
        child = average(networks, groups, couplings, recipe.shares(len(networks)))
    with watch.step("renorm"):
        renormalise(child, "reset", loader)
    found = {
        "all": sum(watch.seconds.values()),
        "all_clock": time.perf_counter() - started,
        "memory": peak_mib() - before,
    }
    with watch.step("forward"):
        pass_forward(networks, loader, at_once=AT_ONCE)
    work = Work.of(networks[0], groups, example)
    return {**watch.seconds, **found, "forward_flops": work.forward, "covariance_flops": work.covariance}


def _assignment(size: int, seed: int) -> dict[str, float]:
    """Channels of two unrelated networks: noise and a tenth as many common causes, 4,000 samples."""
    torch.manual_seed(seed)
    causes = torch.randn(4000, size // 10)
    first, second = (causes @ torch.randn(size // 10, size) / size**0.5 + torch.randn(4000, size) for _ in range(2))
    cost = 1.0 - (first.T @ second) / first.norm(dim=0)[:, None] / second.norm(dim=0)[None, :]
    before, begun, started = peak_mib(), time.process_time(), time.perf_counter()
    assigned(cost)
    seconds = time.process_time() - begun
    found = {"assignment": seconds, "all": seconds, "all_clock": time.perf_counter() - started}
    return {**found, "memory": peak_mib() - before}


# --- what is shown ---------------------------------------------------------------------------------


def of_axis(table: pd.DataFrame, cells: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """The rows of the cells along an axis, with the column `x` of its value."""
    parts = []
    for value, cell in cells.items():
        same = [all(row[key] == str(cell[key]) for key in cell) for row in table.to_dict("records")]
        parts.append(table[same].assign(x=float(value), name=value))
    return pd.concat(parts)


def law(rows: pd.DataFrame, column: str) -> PowerLaw | None:
    """The power law of a column along an axis; None where fewer than two values are above zero."""
    rows = rows[rows[column] > 0]
    return PowerLaw.fit(rows["x"].tolist(), rows[column].tolist()) if rows["x"].nunique() > 1 else None


def tables(table: pd.DataFrame, axes: Axes, shown: Sequence[str], check: str) -> str:
    """One table per axis that is shown, seconds of the processor by step, with exponents below; and the estimates."""
    parts = []
    columns = {**{step: step for step in (*STEPS, "all")}, "memory": "MiB"}
    for axis in shown:
        rows = of_axis(table, axes[axis])
        there = [column for column in columns if rows[column].notna().any()]
        lines = []
        for value, own in rows.groupby("name", sort=False):
            cells = [Estimate.of(own[column].tolist()) for column in there]
            lines.append([str(value), *(_text(cell, column) for cell, column in zip(cells, there, strict=True))])
        laws = [law(rows, column) for column in there]
        if any(laws):
            lines.append(["exponent", *("" if found is None else found.text() for found in laws)])
        if lines:
            parts.append(markdown([axis, *(columns[column] for column in there)], lines))
    rates = measured_rates(table, axes)
    return "\n\n".join([*parts, *([estimates(of_axis(table, axes[LARGE]), rates, check)] if rates is not None else [])])


def _text(found: Estimate | None, column: str) -> str:
    return "" if found is None else f"{found.mean:.0f}" if column == "memory" else f"{found.mean:.3g}"


def measured_rates(table: pd.DataFrame, axes: Axes) -> Rates | None:
    """Operations per second at the greatest width, and the law of assignment; None where they were not measured."""
    widest = of_axis(table, axes["width"])
    widest = widest[(widest["x"] == widest["x"].max()) & (widest["matching"] > widest["forward"])]
    assignment = law(of_axis(table, axes["channels assigned"]), "assignment")
    if widest.empty or assignment is None:
        return None
    images, parents = (widest[key].astype(float) for key in ("images", "parents"))
    forward = images * parents * widest["forward_flops"] / widest["forward"]
    covariance = images * widest["covariance_flops"] / (widest["matching"] - widest["forward"])
    return Rates(float(forward.mean()), float(covariance.mean()), assignment)


def estimates(rows: pd.DataFrame, rates: Rates, check: str) -> str:
    """What the rates say for a network, ResNet50, as it is and wider, beside its rows."""
    network, example = build_network(check), torch.zeros(1, 3, 224, 224)
    work = Work.of(network, find_groups(network, example[:, :, :64, :64]), example)
    own, lines = rows.mean(numeric_only=True), []
    if own["all"] > 0:
        parts = (own["forward"] + own["renorm"], own["matching"] - own["forward"], own["assignment"])
        lines.append([f"ResNet50, {CHECKED} images, measured", *_numbers(work.parameters, parts), "", ""])
    asked = [
        (f"ResNet50, {CHECKED} images", 1.0, CHECKED),
        (f"ResNet50, {IMAGES_OF_ESTIMATE} images", 1.0, IMAGES_OF_ESTIMATE),
    ]
    asked += [(f"ResNet50 at width 4, {IMAGES_OF_ESTIMATE} images", 4.0, IMAGES_OF_ESTIMATE)]
    wide = (1e9 / work.parameters) ** 0.5
    asked += [(f"ResNet50 at width {wide:.1f}, {IMAGES_OF_ESTIMATE} images", wide, IMAGES_OF_ESTIMATE)]
    for name, times, images in asked:
        wider = work.widened(times)
        memory = [f"{size:.1f}" for size in Rates.gibibytes(wider).values()]
        lines.append([name, *_numbers(wider.parameters, rates.seconds(wider, images).values()), *memory])
    heads = ["estimate", "parameters", "forward passes", "covariances", "assignment", "seconds"]
    said = (
        f"{rates.forward / 1e9:.1f} and {rates.covariance / 1e9:.1f} billion operations a second in forward passes and"
        f" covariances; {rates.assignment.constant:.2g} n^{rates.assignment.exponent:.2f} seconds to assign n channels"
    )
    return f"{markdown([*heads, 'GiB of weights', 'GiB of covariances'], lines)}\n\n{said}"


def _numbers(parameters: float, seconds: Iterable[float]) -> list[str]:
    parts = list(seconds)
    return [f"{parameters:.3g}", *(f"{part:.3g}" for part in (*parts, sum(parts)))]


def draw(table: pd.DataFrame, axes: Axes, shown: Sequence[str], path: Path) -> None:
    """A panel for each axis of several values: seconds of the processor by step."""
    panels: dict[str, dict[str, dict[str, Estimate]]] = {}
    for axis in shown:
        for value, own in of_axis(table, axes[axis]).groupby("name", sort=False):
            for step in STEPS if len(axes[axis]) > 1 else ():
                found = Estimate.of(own[step].tolist())
                if found is not None:
                    panels.setdefault(axis, {}).setdefault(step, {})[str(value)] = found
    draw_intervals(panels, path, "CPU seconds", power_laws=True)


# --- the command -----------------------------------------------------------------------------------


def study_of(axes: Axes, check: str, measured: Callable[[Cell], Mapping[str, Any]]) -> Measurement:
    """Declare a study of some axes, whose estimates are of the network `check`."""

    def wanted(options: argparse.Namespace) -> list[dict[str, Any]]:
        seeds = numbers("--seeds", options.seeds, 0)
        if unknown := [name for name in options.axes if name not in axes]:
            raise RecipeError(f"there is no axis {unknown[0]!r}: choose from {', '.join(axes)}")
        return [{**cell, "seed": seed} for axis in shown(options) for cell in axes[axis].values() for seed in seeds]

    def shown(options: argparse.Namespace) -> list[str]:
        return options.axes or list(axes)

    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--axes", nargs="+", metavar="NAME", default=[], help=", ".join(axes))
        parser.add_argument("--seeds", metavar="N,...", default="0,1", help="of the networks and images; 0,1")

    return Measurement(
        "scaling",
        __doc__,
        wanted,
        lambda _: Cells(KEYS, VALUES, measured),
        lambda rows, options: tables(rows, axes, shown(options), check),
        add_options,
        lambda rows, options, path: draw(rows, axes, shown(options), path),
    )


MEASUREMENT = study_of(AXES, CHECK, measure)
