"""Fuse two networks that know different things.

    python -m experiments.gallery.step1_fuse_two

Shows the whole of depfuse: two parents, a thousand training images without labels, one child. Parent `a` has hardly
seen the digits 5 to 9 and parent `b` hardly 0 to 4; the child, which is no larger than either, reads both.

Reached on 500 test images (seed 0, one thread of an AMD EPYC with AVX512-bf16): parents 52.0 % and 59.2 %, their plain
average with new BatchNorm statistics 43.6 %, the child 87.0 %.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure

from depfuse import Recipe, fuse, naive_average
from depfuse.evaluate import evaluate
from depfuse.renorm import renormalise
from experiments.gallery.digits import BLUE, GREY, accuracy_by_digit, calibration, parents, test


def main(picture: Path) -> dict[str, float]:
    a, b = parents()
    result = fuse([a, b], Recipe(refit="none"), calibration)

    # The same average, without asking which channel is which.
    naive = naive_average([a, b], (0.5, 0.5), result.groups)
    renormalise(naive, "reset", calibration)

    networks = {"parent a": a, "parent b": b, "plain average": naive, "child": result.child}
    reached = {name: 100 * evaluate(network, test).accuracy for name, network in networks.items()}
    for name, accuracy in reached.items():
        print(f"{name:14s} {accuracy:5.1f} %")

    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axes = figure.subplots()
    colours = {"parent a": "#56B4E9", "parent b": "#E69F00", "plain average": GREY, "child": BLUE}
    for place, (name, network) in enumerate(networks.items()):
        bars = [digit + 0.2 * (place - 1.5) for digit in range(10)]
        label = f"{name} ({reached[name]:.1f} %)"
        axes.bar(bars, accuracy_by_digit(network).numpy(), width=0.2, color=colours[name], label=label)
    axes.set_xticks(range(10))
    axes.set_xlabel("digit")
    axes.set_ylabel("accuracy (%)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize="small")
    figure.savefig(picture, dpi=110)
    return reached


if __name__ == "__main__":
    torch.set_num_threads(1)  # as for the figures above
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".png"))
