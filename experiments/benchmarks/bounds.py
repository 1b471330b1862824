"""Time and memory of the corridor, each figure beside its bound; exit code 1 where one is missed.

    python -m experiments run bounds

A minute; two threads. Seconds depend on the machine: the ratio of alignment to the bare forward passes of both parents,
in turns, best of seven rounds, and the growth of peak memory from 2,000 to 20,000 images do not. Parts whose parents
are absent are left out.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence

import torch
from torch import nn

from depfuse import Recipe, find_groups, fuse, prove_groups
from depfuse.align import align
from depfuse.data import Loader, calibration_loader
from depfuse.groups import ChannelGroups
from depfuse.models import build_network
from experiments.benchmarks.end_to_end import random_images, random_parents
from experiments.lib.material import shared_material
from experiments.lib.places import ROOT, SHARED
from experiments.lib.timing import layouts_of, pass_forward, peak_mib, seconds_of

RESNET20S = "resnet20-8-1-8-2"


def show(name: str, figure: float, bound: float, unit: str) -> bool:
    holds = figure <= bound
    print(f"{'ok   ' if holds else 'SHORT'}  {name:58s} {figure:7.2f} {unit}  (at most {bound:g})", flush=True)
    return holds


def groups_of_resnet18() -> list[bool]:
    network, example = build_network("torchvision:resnet18"), torch.randn(1, 3, 224, 224)
    found: list[ChannelGroups] = []
    finding = seconds_of(lambda: found.append(find_groups(network, example)))
    proving = seconds_of(lambda: prove_groups(network, found[0], example))
    return [show("groups of ResNet18", finding, 2.0, "s"), show("proof of ResNet18's groups", proving, 3.0, "s")]


def alignment(name: str, networks: Sequence[nn.Module], images: Loader, rounds: int = 7) -> bool:
    example = next(iter(images))[0][:1]
    groups = find_groups(networks[0], example)
    layouts = layouts_of(networks, images)
    pass_forward(networks, images, layouts)  # warms
    pairs = [
        (
            seconds_of(lambda: align(networks, groups, Recipe().align, images).couplings),
            seconds_of(lambda: pass_forward(networks, images, layouts)),
        )
        for _ in range(rounds)
    ]
    ratio = min(aligning for aligning, _ in pairs) / min(bare for _, bare in pairs)
    return show(f"alignment / bare forward passes, {name}", ratio, 1.3, "x")


def fusion_of_mnist_pair() -> bool:
    inputs = shared_material("simplenet").inputs
    result = fuse(inputs.models, Recipe(refit="none"), calibration_loader(inputs.data, 2000))
    return show("fusion of the MNIST pair without evaluation", sum(result.seconds.values()), 3.0, "s")


def print_peak_memory(images: int) -> None:
    inputs = shared_material(RESNET20S).inputs
    fuse(inputs.models, Recipe(refit="none"), calibration_loader(inputs.data, images))
    print(round(peak_mib()))


def growth_of_memory() -> bool:
    peaks = []
    for images in (2000, 20000):
        command = [sys.executable, "-m", "experiments.benchmarks.bounds", "--peak-memory", str(images)]
        peaks.append(
            int(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.split()[-1])
        )
    print(f"       peak memory {peaks[0]} MiB with 2,000 images, {peaks[1]} MiB with 20,000")
    return show("growth of peak memory, 2,000 to 20,000 images", 100 * (peaks[1] / peaks[0] - 1), 10.0, "%")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peak-memory", type=int, metavar="IMAGES", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    if chosen.peak_memory:
        print_peak_memory(chosen.peak_memory)
        return 0
    held, cpu = groups_of_resnet18(), torch.device("cpu")
    held.append(alignment("random ResNet18 of half width", random_parents(0.5, cpu), random_images(500, cpu, 0)))
    if (SHARED / "checkpoints").is_dir():
        inputs = shared_material(RESNET20S).inputs
        held.append(alignment("real ResNet20s", inputs.models, calibration_loader(inputs.data, 2000)))
        held.append(fusion_of_mnist_pair())
        held.append(growth_of_memory())
    else:
        print(f"       real parents left out: {SHARED}/checkpoints is not there")
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
