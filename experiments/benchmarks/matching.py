"""Seconds and quality of weight matching on two ResNet50s, and of the assignment of 4,096 channels.

    python -m experiments run matching --threads 2

Minutes; two threads. Beside depfuse the same sweeps with all costs recomputed at every step, and the package rebasin
(`pip install 'depfuse[peers]'`).
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

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
from depfuse.io.atomic_files import replacing
from depfuse.models import build_network
from experiments.lib.places import MEASUREMENTS
from experiments.lib.tables import markdown

NOISE = 0.5  # of the standard deviation of each tensor
CSV = MEASUREMENTS / "matching.csv"
KINDS = ("random", "noisy-permuted")


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


def resnet50_rows() -> Iterator[dict[str, Any]]:
    for kind in KINDS:
        first, second, groups = resnet50s(kind)
        recipe = Recipe(criterion="weights")
        problem = MatchingProblem(groups, (first, second), recipe.align)
        started = time.perf_counter()
        found = align([first, second], groups, recipe.align, None).couplings[1]
        yield _row(kind, "depfuse", started, problem.distance(found))
        started = time.perf_counter()
        again = recomputed(problem)
        yield _row(kind, "all costs recomputed", started, problem.distance(again))
        try:
            from rebasin import PermutationCoordinateDescent
        except ImportError:
            continue
        example = torch.randn(1, 3, 224, 224)
        started = time.perf_counter()
        PermutationCoordinateDescent(first, second, example).rebasin()
        seconds = time.perf_counter()
        rest = MatchingProblem(groups, (first, second), recipe.align)
        identity = align([first, first], groups, Recipe(criterion="weights", restarts=1).align, None).couplings[0]
        yield _row(kind, "rebasin", started, rest.distance(identity), seconds)


def _row(kind: str, by: str, started: float, distance: float, ended: float | None = None) -> dict[str, Any]:
    seconds = (time.perf_counter() if ended is None else ended) - started
    return {"part": "resnet50", "kind": kind, "by": by, "seconds": seconds, "distance": distance}


def wide_rows() -> Iterator[dict[str, Any]]:
    size = 4096
    torch.manual_seed(0)
    points = torch.randn(size, size)
    others = {
        "independent": torch.randn(size, size),
        "noisy-permuted": points[torch.randperm(size)] + 0.5 * torch.randn(size, size),
    }
    costs = {kind: torch.cdist(points, other) for kind, other in others.items()}
    costs["16 dimensions"] = torch.cdist(points[:, :16], others["independent"][:, :16])
    costs["rank one"] = -points[:, :1] * others["independent"][:, :1].T
    for kind, cost in costs.items():
        started = time.perf_counter()
        assigned(cost)
        yield {
            "part": "wide",
            "kind": kind,
            "by": "assigned",
            "seconds": time.perf_counter() - started,
            "distance": None,
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, keep and print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--csv", type=Path, default=CSV, metavar="FILE")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    warnings.simplefilter("always")
    known = pd.read_csv(chosen.csv) if chosen.csv.exists() else pd.DataFrame({"part": []})
    table = known[~known["part"].isin(chosen.parts)]
    for part in chosen.parts:
        for row in PARTS[part]():
            table = pd.concat([table, pd.DataFrame([row])], ignore_index=True)
            print(f"{row['kind']}, {row['by']}: {row['seconds']:.2f} s", file=sys.stderr, flush=True)
            with replacing(chosen.csv) as temporary:
                table.to_csv(temporary, index=False)
    print(table_of(table))
    return 0


def table_of(rows: pd.DataFrame) -> str:
    """Seconds of each way, and the squared distance between the weights that it reaches, in Markdown."""
    lines = [
        [row["kind"], row["by"], f"{row['seconds']:.2f}", "" if pd.isna(row["distance"]) else f"{row['distance']:.6g}"]
        for row in rows.to_dict("records")
    ]
    return markdown(["what", "by", "seconds", "squared distance"], lines)


def page() -> str:
    """Make the table of what is stored."""
    return table_of(pd.read_csv(CSV))


PARTS = {"resnet50": resnet50_rows, "wide": wide_rows}

if __name__ == "__main__":
    sys.exit(main())
