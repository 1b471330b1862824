"""Seconds and quality of every solver: weights of two ResNet50s, a group of 4,096 channels, and real ResNet20s.

    python -m experiments.benchmarks.matching

`resnet50`: two of torchvision's, with random weights or the second a permuted copy with noise, matched by weights with
the default restarts; beside it the same sweeps with all costs recomputed at every step, and the package rebasin
(`pip install 'depfuse[peers]'`), with the squared distance between the weights that each reaches. `wide`: assignment of
4,096 channels by costs of four kinds. `resnet20`: the three pairs of run8 (see `parents.py`) at equal weights,
permutation and BatchNorm reset from 2,000 training images; accuracy on CIFAR-10's test images, and what the choice was
made by: disagreement with the parents' ensemble on unlabelled training images, and accuracy on 5,000 held-out ones.
Rows are kept in the file as soon as they are there. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from depfuse import ChannelGroups, Recipe, find_groups
from depfuse.align import Couplings, align
from depfuse.align.costs import weight_cost
from depfuse.align.problem import MatchingProblem
from depfuse.align.transport import assigned
from depfuse.align.trees import Placement, as_it_stands, follow
from depfuse.data import Loader, calibration_loader
from depfuse.ensemble.ensemble import Ensemble
from depfuse.evaluate import evaluate
from depfuse.fusion.agreement import Disagreement
from depfuse.fusion.calibration import CalibrationSplit
from depfuse.groups import random_permutations
from depfuse.io.atomic_files import replacing
from depfuse.merge import average
from depfuse.models import build_network
from depfuse.renorm import renormalise
from experiments.lib.parents.shared import PAIRS, require_shared
from experiments.studies.compare_solvers import held_out

NOISE = 0.5  # of the standard deviation of each tensor
KINDS = ("random", "noisy-permuted")
PAIRS_OF_RUN8 = ("resnet20-8-1-8-2", "resnet20-8-1-8-3", "resnet20-8-2-8-3")
MIXTURE = {"criterion": "mixture", "mixture": 0.7}
SETTINGS: dict[str, dict[str, Any]] = {
    "emd, activations": {"criterion": "activations", "solver": "emd"},
    "emd, chosen by group": {"criterion": "activations", "solver": "emd", "choose": "groups"},
    "sinkhorn 0.1, activations": {"criterion": "activations", "solver": "sinkhorn", "regularisation": 0.1},
    **{
        f"{solver}, weights": {"criterion": "weights", "solver": solver}
        for solver in (
            "emd", "coordinate-descent", "spectral", "reweighted-random-walk", "ipfp", "frank-wolfe", "fused-gromov",
        )
    },
    **{
        f"{solver}, mixture": {**MIXTURE, "solver": solver}
        for solver in ("spectral", "reweighted-random-walk", "ipfp", "frank-wolfe", "fused-gromov")
    },
    **{
        f"{solver}, mixture, from activations": {**MIXTURE, "solver": solver, "start": "activations"}
        for solver in ("coordinate-descent", "ipfp", "frank-wolfe")
    },
    "coordinate-descent, weights, from activations": {
        "criterion": "weights",
        "solver": "coordinate-descent",
        "start": "activations",
    },
    "fused-gromov, activations": {"criterion": "activations", "solver": "fused-gromov"},
    "sinkhorn-implicit": {"criterion": "activations", "solver": "sinkhorn-implicit"},
}  # fmt: skip


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
        found[root.name] = as_it_stands(root)
        before = [part for part in problem.parts(root) if part.role != "consumes"] or problem.parts(root)
        step = {root.name: assigned(weight_cost(before, problem.target, state)[0])}
        found[root.name] = follow(found[root.name], step)
        state = root.permute(state, step)
    moved = True
    while moved:
        moved = False
        for root in problem.roots:
            step_or_none = problem.improve(root, state, found[root.name])
            if step_or_none is not None:
                found[root.name] = follow(found[root.name], step_or_none)
                state = root.permute(state, step_or_none)
                moved = True
    return problem.couplings(found)


def resnet50_rows() -> Iterator[dict[str, Any]]:
    for kind in KINDS:
        first, second, groups = resnet50s(kind)
        recipe = Recipe(criterion="weights")
        problem = MatchingProblem(groups, (first, second), recipe)
        started = time.perf_counter()
        found = align([first, second], groups, recipe, None).couplings[1]
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
        rest = MatchingProblem(groups, (first, second), recipe)
        identity = align([first, first], groups, Recipe(criterion="weights", restarts=1), None).couplings[0]
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
        yield {"part": "wide", "kind": kind, "by": "assigned", "seconds": time.perf_counter() - started}


def resnet20_rows(known: set[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    require_shared()
    for key in PAIRS_OF_RUN8:
        pair = PAIRS[key]
        networks, data = pair.networks(), pair.dataset()
        calibration = calibration_loader(data, 2000)
        groups = find_groups(networks[0], data.example())
        held, test = (Loader(split, data.preprocessing, batch_size=1000) for split in (held_out(data), data.test))
        for name, setting in SETTINGS.items():
            if (pair.name, name) in known:
                continue
            recipe = Recipe.create(**setting)
            judge = Disagreement(
                Ensemble(networks, ()), groups, recipe.renorm, CalibrationSplit.for_matchings(calibration)
            )
            started = time.perf_counter()
            couplings = align(networks, groups, recipe, calibration, judge).couplings
            seconds = time.perf_counter() - started
            child = average(networks, groups, couplings, (0.5, 0.5))
            renormalise(child, recipe.renorm, calibration)
            yield {
                "part": "resnet20",
                "kind": pair.name,
                "by": name,
                "seconds": seconds,
                "judged": judge(1, couplings[1]),
                "held-out": 100 * evaluate(child, held).accuracy,
                "test": 100 * evaluate(child, test).accuracy,
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=("resnet50", "wide", "resnet20"), default=["resnet50", "wide"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/matching.json"))
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    warnings.simplefilter("always")
    rows: list[dict[str, Any]] = json.loads(chosen.out.read_text()) if chosen.out.exists() else []
    rows = [row for row in rows if row["part"] not in chosen.parts or row["part"] == "resnet20"]
    known = {(row["kind"], row["by"]) for row in rows}
    for part in chosen.parts:
        made = resnet20_rows(known) if part == "resnet20" else resnet50_rows() if part == "resnet50" else wide_rows()
        print("\n| what | by | seconds | figures |\n| --- | --- | --- | --- |", flush=True)
        for row in made:
            figures = ", ".join(f"{k} {v:.6g}" for k, v in row.items() if k not in ("part", "kind", "by", "seconds"))
            print(f"| {row['kind']} | {row['by']} | {row['seconds']:.2f} | {figures} |", flush=True)
            rows.append(row)
            with replacing(chosen.out) as temporary:
                temporary.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
