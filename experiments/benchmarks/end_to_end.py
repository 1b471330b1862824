"""A ResNet18 fused end to end: where the seconds go, and what the bare forward passes alone take.

    python -m experiments run end_to_end --device cuda

Seconds on a GPU, minutes on the CPU. Two CIFAR ResNet18s with random weights and images: found, proved, matched by
2,000 images with the default settings, averaged, BatchNorm reset on 50,000 and evaluated on 10,000; once on a few
images before the clock starts. Asked for: at most 8 s on a GPU, and 1.3 times the bare passes on the CPU; exit code 1
where it takes more.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch
from torch import nn

from depfuse import Recipe, find_groups, fuse, prove_groups
from depfuse.data import Loader, Preprocessing, Split
from depfuse.distributed.device import resolve_device
from depfuse.evaluate import evaluate
from depfuse.fusion.parents import Parents
from depfuse.models import build_network
from depfuse.renorm import renormalise
from experiments.lib.command import check_counts, exit_code
from experiments.lib.processes import CellError
from experiments.lib.tables import markdown
from experiments.lib.timing import Watch, pass_forward

MOST_SECONDS, MOST_TIMES = 8.0, 1.3  # on a GPU, and of bare forward passes on a CPU
WARMING = 500  # images


def random_images(count: int, device: torch.device, seed: int) -> Loader:
    """Random pixels and labels, on the device."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (count,), generator=generator)
    return Loader(Split(pixels, labels), Preprocessing(), batch_size=250, device=device)


def random_parents(width: float, device: torch.device) -> list[nn.Module]:
    """Two ResNet18s with random weights, in eval mode."""
    networks = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        networks.append(build_network(f"cifar_resnet18(width={width})").eval().to(device))
    return networks


def fused(parents: list[nn.Module], align: Loader, reset: Loader, test: Loader, watch: Watch) -> nn.Module:
    """Everything that a user asks for, step by step."""
    example = next(iter(align))[0][:1]
    with watch.step("groups found"):
        groups = find_groups(parents[0], example)
    with watch.step("groups proved"):
        prove_groups(parents[0], groups, example)
    with watch.step(f"matched and merged, {align.count:,} images"):
        child = fuse(Parents(parents, groups=groups), Recipe(refit="none", renorm="none"), align).child
    with watch.step(f"BatchNorm reset, {reset.count:,} images"):
        renormalise(child, "reset", reset)
    with watch.step(f"evaluated, {test.count:,} images"):
        evaluate(child, test)
    return child


def run(options: argparse.Namespace) -> None:
    """Measure and print; `CellError` where the bound of the device is missed."""
    check_counts(options, align=2, reset=2, test=1)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = resolve_device(options.device)
    parents = random_parents(options.width, device)
    align, reset, test = (
        random_images(count, device, seed) for seed, count in enumerate((options.align, options.reset, options.test))
    )
    few = align.first(WARMING)
    fused(parents, few, few, few, Watch(device))  # leaves them as they are
    watch, bare = Watch(device), Watch(device)
    child = fused(parents, align, reset, test, watch)
    total = sum(watch.seconds.values())
    with bare.step("passes"):  # which cannot be saved
        for networks, loader in ((parents, align), ([child], reset), ([child], test)):
            pass_forward(networks, loader)
    passes = bare.seconds["passes"]
    rows = [*watch.seconds.items(), ("all", total), ("bare forward passes", passes)]
    print(markdown(["step", "seconds"], [[name, f"{seconds:.2f}"] for name, seconds in rows]))
    on_gpu = device.type == "cuda"
    held = total <= MOST_SECONDS if on_gpu else total <= options.most_times * passes
    bound = f"{MOST_SECONDS:g} s" if on_gpu else f"{options.most_times:g} times"
    said = f"{total:.1f} s, {total / passes:.2f} times the bare passes; at most {bound} asked for"
    if not held:
        raise CellError(f"too slow: {said}")
    print(said)


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--width", type=float, default=1.0, help="1 for 64 to 512 channels")
    options.add_argument("--align", type=int, default=2000, help="images to match with; 2000")
    options.add_argument("--reset", type=int, default=50_000, help="images for BatchNorm's statistics; 50000")
    options.add_argument("--test", type=int, default=10_000, help="images to evaluate on; 10000")
    options.add_argument("--most-times", type=float, default=MOST_TIMES, help="bare forward passes, on a CPU; 1.3")
    options.add_argument("--device", default="auto", help="cpu, cuda or auto; auto")
    options.add_argument("--threads", type=int, help="of the CPU; all cores if left out")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where all is well, 1 where the bound is missed, 2 where the request is wrong."""
    return exit_code(run, parser().parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
