"""Seconds and quality of weight matching on two ResNet50s, and of the assignment of 4,096 channels.

    python -m experiments run matching --threads 2

Minutes; two threads. Beside depfuse the same sweeps with all costs recomputed at every step, and the package rebasin
(`pip install 'depfuse[peers]'`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from importlib.util import find_spec

import pandas as pd
import torch
from torch import Tensor, nn

from depfuse import ChannelGroups, Recipe, find_groups
from depfuse.align import Couplings, align
from depfuse.align.costs import weight_cost
from depfuse.align.problem import MatchingProblem, is_better
from depfuse.align.transport import assigned
from depfuse.align.trees import Placement, compose_placements, unmoved_placement
from depfuse.groups import random_permutations
from depfuse.models import build_network
from experiments.lib.cells import Cell, Cells
from experiments.lib.measurement import Measurement
from experiments.lib.tables import markdown

NOISE = 0.5  # of the standard deviation of each tensor
PARTS = ("resnet50", "wide")
KINDS = ("random", "noisy-permuted")  # of ResNet50s
WIDE = ("independent", "noisy-permuted", "16 dimensions", "rank one")  # costs of 4,096 channels
RECOMPUTED = "all costs recomputed"


def resnet50s(kind: str) -> tuple[nn.Module, nn.Module, ChannelGroups]:
    """Two networks and the groups of both."""
    networks = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        networks.append(build_network("torchvision:resnet50").eval())
    first, second = networks
    groups = find_groups(first, torch.zeros(1, 3, 64, 64))
    if kind == "noisy-permuted":
        state: Mapping[str, Tensor] = first.state_dict()
        for group, order in random_permutations(groups, 3).items():
            state = groups[group].permute(state, order)
        state = {
            key: tensor + NOISE * tensor.std() * torch.randn_like(tensor) if tensor.dim() > 1 else tensor
            for key, tensor in state.items()
        }
        second.load_state_dict(state)
    return first, second, groups


def recomputed(problem: MatchingProblem) -> Couplings:
    """Coordinate descent from the order of the network, all costs of a group computed anew at every visit."""
    state = dict(problem.source)
    found: dict[str, Placement] = {}
    for root in problem.roots:
        found[root.name] = unmoved_placement(root)
        before = [part for part in problem.parts(root) if part.role != "consumes"] or problem.parts(root)
        step = {root.name: assigned(weight_cost(before, problem.target, state)[0])}
        found[root.name] = compose_placements(found[root.name], step)
        state = root.permute(state, step)
    moved = True
    while moved:
        moved = False
        for root in problem.roots:
            cost = weight_cost(problem.parts(root), problem.target, state)[0]
            order = assigned(cost)
            if is_better(float(cost.gather(1, order[:, None]).sum()), float(cost.trace())):
                found[root.name] = compose_placements(found[root.name], {root.name: order})
                state = root.permute(state, {root.name: order})
                moved = True
    return problem.couplings(found)


def on_resnet50s(kind: str, by: str) -> dict[str, float]:
    """Match two ResNet50s in one of the ways: its seconds, and the distance that it reaches."""
    first, second, groups = resnet50s(kind)
    align_by = Recipe(criterion="weights").align
    problem = MatchingProblem(groups, (first, second), align_by)
    started = time.perf_counter()
    if by == "rebasin":
        from rebasin import PermutationCoordinateDescent

        example = torch.randn(1, 3, 224, 224)
        started = time.perf_counter()
        PermutationCoordinateDescent(first, second, example).rebasin()  # moves the second one
        seconds = time.perf_counter() - started
        problem = MatchingProblem(groups, (first, second), align_by)
        found = align([first, first], groups, Recipe(criterion="weights", restarts=1).align, None).couplings[0]
        return {"seconds": seconds, "distance": problem.distance(found)}
    found = recomputed(problem) if by == RECOMPUTED else align([first, second], groups, align_by, None).couplings[1]
    return {"seconds": time.perf_counter() - started, "distance": problem.distance(found)}


def on_wide_layers(kind: str) -> dict[str, float]:
    """Assign the channels of two wide layers."""
    size = 4096
    torch.manual_seed(0)
    points = torch.randn(size, size)
    others = {
        "independent": torch.randn(size, size),
        "noisy-permuted": points[torch.randperm(size)] + 0.5 * torch.randn(size, size),
    }
    if kind in others:
        cost = torch.cdist(points, others[kind])
    elif kind == "16 dimensions":
        cost = torch.cdist(points[:, :16], others["independent"][:, :16])
    else:
        cost = -points[:, :1] * others["independent"][:, :1].T
    started = time.perf_counter()
    assigned(cost)
    return {"seconds": time.perf_counter() - started}


def measure(cell: Cell) -> dict[str, float]:
    """Measure one way to match networks, or one assignment."""
    if cell["part"] == "wide":
        return on_wide_layers(cell["kind"])
    return on_resnet50s(cell["kind"], cell["by"])


def wanted(options: argparse.Namespace) -> list[dict[str, str]]:
    """The cells of the parts; rebasin where it is installed."""
    ways = ["depfuse", RECOMPUTED, *(["rebasin"] if find_spec("rebasin") else [])]
    cells = [{"part": "resnet50", "kind": kind, "by": by} for kind in KINDS for by in ways]
    cells += [{"part": "wide", "kind": kind, "by": "assigned"} for kind in WIDE]
    return [cell for cell in cells if cell["part"] in options.parts]


def table_of(rows: pd.DataFrame) -> str:
    """Seconds of each way, and the squared distance between the weights that it reaches, in Markdown."""
    lines = [
        [row["kind"], row["by"], f"{row['seconds']:.2f}", "" if pd.isna(row["distance"]) else f"{row['distance']:.6g}"]
        for row in rows.to_dict("records")
    ]
    return markdown(["what", "by", "seconds", "squared distance"], lines)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare what is measured."""
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))


MEASUREMENT = Measurement(
    "matching",
    __doc__,
    wanted,
    lambda _: Cells(("part", "kind", "by"), ("seconds", "distance"), measure),
    lambda rows, _: table_of(rows),
    add_options,
)
