"""Is the function kept by the permutation? The package rebasin and depfuse on the same two networks.

    python -m experiments run peers --threads 1

Minutes; one thread; needs `pip install 'depfuse[peers]'`. Both match the weights of network B to those of A by
coordinate descent and permute B, in float32; B must compute what it computed before. The error is the largest change
of its output over four random images, relative to the largest output: with BatchNorm statistics 0 and 1 before and
after, so that only the weights count, and as the network is. (rebasin means statistics to be recomputed.) `moved` is
the share of B's parameters in tensors that changed; `distance` is how far B's weights are from A's afterwards, relative
to before. Of the real ResNet20s, B's accuracy is given instead: before, after, and with statistics recomputed.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from depfuse import Recipe, find_groups, prove_groups
from depfuse.align import align, apply_couplings
from depfuse.data import Loader, calibration_loader
from depfuse.errors import RecipeError
from depfuse.evaluate import evaluate
from depfuse.groups import explain, not_followed
from depfuse.models import build_network, example_shape
from depfuse.renorm import renormalise
from experiments.lib.cells import Cell, Cells
from experiments.lib.command import say
from experiments.lib.material import shared_material
from experiments.lib.measurement import Measurement
from experiments.lib.own_process import apart
from experiments.lib.places import SHARED
from experiments.lib.tables import markdown

VALUES = (
    "moved", "distance", "seconds", "find", "prove", "match", "error", "error_of_weights", "accuracy_before",
    "accuracy_after", "accuracy_renewed",
)  # fmt: skip
REAL = "resnet20-8-1-8-2"
NETWORKS = [
    *(
        f"torchvision:{name}"
        for name in (
            "resnet18", "resnet50", "mobilenet_v2", "efficientnet_b0", "resnext50_32x4d", "googlenet", "swin_t",
            "densenet121",
        )
    ),
    REAL,
]  # fmt: skip
PACKAGES = ("rebasin", "depfuse")
KEPT = 1e-3  # far above what float32 rounds away, far below what a wrong permutation does
State = Mapping[str, Tensor]


def pair_of(name: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """Network A, network B and an example input, the same in every process."""
    if name == REAL:
        first, second = shared_material(REAL).inputs.models
        return first, second, torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    networks = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        networks.append(generic(build_network(name)).eval())
    return networks[0], networks[1], torch.randn(1, *example_shape(name, networks[0]))


def generic(network: nn.Module) -> nn.Module:
    """Give the normalisation layers scales, shifts and statistics as training would, instead of zeros and ones."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.LayerNorm)):
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.normal_(module.bias, std=0.1)
    return network


def run_rebasin(first: nn.Module, second: nn.Module, example: Tensor) -> dict[str, float]:
    """Permute the second network in place."""
    from rebasin import PermutationCoordinateDescent

    started = time.perf_counter()
    PermutationCoordinateDescent(first, second, example).rebasin()
    return {"seconds": time.perf_counter() - started}


def run_depfuse(first: nn.Module, second: nn.Module, example: Tensor) -> dict[str, float]:
    """Permute the second network in place."""
    started = time.perf_counter()
    groups = find_groups(first, example)
    found = time.perf_counter()
    groups = prove_groups(first, groups, example)
    if wrong := not_followed(groups):
        say(f"fixed: {explain(wrong)}")
    proved = time.perf_counter()
    recipe = Recipe(criterion="weights", solver="coordinate-descent", restarts=1, renorm="none", refit="none")
    couplings = align([first, second], groups, recipe.align, None).couplings[1]
    moved = apply_couplings(groups, couplings, second.state_dict())
    with torch.no_grad():
        for key, tensor in second.state_dict().items():
            tensor.copy_(moved[key])
    matched = time.perf_counter()
    return {
        "seconds": matched - started,
        "find": found - started,
        "prove": proved - found,
        "match": matched - proved,
    }


def measure(package: str, name: str) -> dict[str, float]:
    """Permute network B by one package, and compare what it computes before and after."""
    first, second, example = pair_of(name)
    original = copy.deepcopy(second)
    run: Callable[..., dict[str, float]] = {"rebasin": run_rebasin, "depfuse": run_depfuse}[package]
    result = run(first, second, example)
    second.eval()
    keys = [key for key, _ in second.named_parameters()]
    before, after, target = (network.state_dict() for network in (original, second, first))
    changed = sum(before[key].numel() for key in keys if not torch.equal(before[key], after[key]))
    result["moved"] = changed / sum(before[key].numel() for key in keys)
    result["distance"] = _distance(target, after, keys) / _distance(target, before, keys)
    images = torch.randn(4, *example.shape[1:], generator=torch.Generator().manual_seed(2))
    if name == REAL:
        result.update(accuracies(original, second))
    result["error"] = change(original, second, images)
    for network in (original, second):
        without_statistics(network)
    result["error_of_weights"] = change(original, second, images)
    return result


@torch.no_grad()
def change(first: nn.Module, second: nn.Module, images: Tensor) -> float:
    """Largest difference of two networks' outputs, relative to the largest output."""
    before, after = first(images), second(images)
    return float((after - before).abs().max() / before.abs().max())


def without_statistics(network: nn.Module) -> None:
    """Set the means and variances of BatchNorm to 0 and 1."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()


def accuracies(original: nn.Module, permuted: nn.Module) -> dict[str, float]:
    """On CIFAR-10: before, after, and after with new BatchNorm statistics."""
    data = shared_material(REAL).inputs.data
    test = Loader(data.test, data.preprocessing, batch_size=500)
    renewed = copy.deepcopy(permuted)
    renormalise(renewed, "reset", calibration_loader(data, 2000))
    networks = {"accuracy_before": original, "accuracy_after": permuted, "accuracy_renewed": renewed}
    return {key: evaluate(network, test).accuracy for key, network in networks.items()}


def _distance(first: State, second: State, keys: list[str]) -> float:
    return sum(float((first[key].double() - second[key].double()).square().sum()) for key in keys) ** 0.5


def figures(cell: Cell) -> Iterator[dict[str, float]]:
    """Yield the figures of one package on one network."""
    yield measure(cell["package"], cell["network"])


def measure_apart(seconds: float, cell: Cell) -> dict[str, Any]:
    """Run one package on one network in a process of its own, which may fail or not come to its end."""
    return apart(figures, cell, seconds=seconds)


def cells(row: Mapping[str, Any]) -> list[str]:
    """Function kept, share moved, distance, seconds: as Markdown cells."""
    if row["refused"]:
        return [row["refused"], "", "", ""]
    if row["moved"] == 0:
        kept = "nothing permuted"
    elif not math.isnan(row["accuracy_after"]):
        before, after, renewed = (f"{100 * row[f'accuracy_{when}']:.2f} %" for when in ("before", "after", "renewed"))
        kept = f"{before} → {after} ({renewed} with new statistics)"
    else:
        kept = f"{_verdict(row['error_of_weights'])}, with statistics {_verdict(row['error'])}"
    parts = f" = {row['find']:.1f} + {row['prove']:.1f} + {row['match']:.1f}" if not math.isnan(row["find"]) else ""
    return [kept, f"{100 * row['moved']:.0f} %", f"{row['distance']:.3f}", f"{row['seconds']:.1f}{parts}"]


def _verdict(error: float) -> str:
    return f"kept ({error:.0e})" if error <= KEPT else f"**broken** ({error:.0e})"


def table_of(rows: pd.DataFrame) -> str:
    """A line per network: both packages side by side."""
    heads = ("function", "moved", "distance", "seconds")
    lines = []
    for name, of in rows.groupby("network", sort=False):
        own = {row["package"]: row for row in of.to_dict("records")}
        label = "real ResNet20, padded shortcuts" if name == REAL else str(name).partition(":")[2]
        parts = [cells(own[package]) if package in own else [""] * 4 for package in PACKAGES]
        lines.append([label, *(cell for part in parts for cell in part)])
    return markdown(["network", *(f"{package}: {head}" for package in PACKAGES for head in heads)], lines)


def wanted(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Both packages on each network; without real parents where they are not there."""
    if not options.tables_only and find_spec("rebasin") is None:
        raise RecipeError("the comparison needs rebasin, torchview, graphviz and tqdm: pip install 'depfuse[peers]'")
    names = [name for name in options.networks if name != REAL or (SHARED / "checkpoints").is_dir()]
    if len(names) < len(options.networks):
        say(f"real ResNet20s left out: {SHARED}/checkpoints is not there")
    return [{"network": name, "package": package} for name in names for package in PACKAGES]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare what is measured."""
    parser.add_argument("--networks", nargs="+", default=NETWORKS, metavar="ARCH", help=f"or {REAL}")
    parser.add_argument("--seconds", type=float, default=300.0, help="limit of each package on each network")


MEASUREMENT = Measurement(
    "peers",
    __doc__,
    wanted,
    lambda options: Cells(("network", "package"), VALUES, partial(measure_apart, options.seconds)),
    lambda rows, _: table_of(rows),
    add_options,
)
