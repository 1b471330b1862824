"""What finding and proving channel groups costs, for one to three networks of each family of torchvision.

    python -m experiments run proof_time --threads 1

Half an hour. Seconds are the processor's, of one thread: `find` until the groups and taps are there, `prove` for their
proof in float64, `pass` for one forward pass of one example in float32. A proof runs the network a few times (`runs`):
once for the outputs, once permuted, both on two examples; once with gradients, and once or twice after a small step,
on one. A run in float64 takes two to five times one in float32, and one with gradients of small parameters, which are
enough for most networks, twice as long. Then it runs it once more for each group that has no effect on outputs with
gradients, as those behind a detector's choice. Where a network runs the same operations on smaller images (96 pixels
for most convolutional ones), it is run on these.

Classifiers get images of the size that `depfuse groups` gives them, 224 pixels where they do not say 256 or 299;
segmentation 64 pixels, videos 8 frames of 64 pixels or the least that they take, and detectors 128 pixels or the size
that they enlarge images to, with a few dozen boxes proposed and kept. They have random weights.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from depfuse.errors import RecipeError
from depfuse.groups import find_groups, prove_groups
from depfuse.networks.forward import run_network
from depfuse.progress import Work, shown
from experiments.lib.cells import Cell, Cells
from experiments.lib.measurement import Measurement
from experiments.lib.own_process import apart
from experiments.lib.tables import markdown
from experiments.proofs.coverage import build

KEYS = ("kind", "name")
VALUES = ("parameters", "groups", "find", "pass", "prove", "runs", "proof_error")
NAMES = {
    "classification": """
        alexnet vgg16_bn squeezenet1_1 resnet18 resnet50 resnet152 resnext50_32x4d resnext101_32x8d wide_resnet101_2
        densenet121 densenet201 googlenet inception_v3 mobilenet_v2 mobilenet_v3_large mnasnet1_0 shufflenet_v2_x1_0
        efficientnet_b0 efficientnet_b7 efficientnet_v2_s efficientnet_v2_l regnet_y_400mf regnet_x_8gf regnet_y_32gf
        convnext_tiny convnext_base vit_b_16 vit_l_16 swin_t swin_b swin_v2_b maxvit_t
    """,
    "segmentation": "fcn_resnet50 deeplabv3_resnet101 lraspp_mobilenet_v3_large",
    "video": "r3d_18 s3d mvit_v1_b swin3d_t",
    "flow": "raft_small",
    "detection": """
        ssdlite320_mobilenet_v3_large ssd300_vgg16 retinanet_resnet50_fpn fcos_resnet50_fpn fasterrcnn_resnet50_fpn
        fasterrcnn_resnet50_fpn_v2 maskrcnn_resnet50_fpn keypointrcnn_resnet50_fpn
    """,
}
LIMITS = {"classification": 10.0}  # seconds in which groups should be found and proved
LIMIT = 60.0  # of other networks


class _Runs(Work):
    """Counts the runs of the network in a proof."""

    count = 0

    def advance(self) -> None:
        """Count one."""
        self.count += 1


def figures(kind: str, name: str) -> Iterator[dict[str, Any]]:
    """Yield what is known of one network as soon as it is."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, example = build("torchvision" if kind == "classification" else "torchvision_dense", name, 10**4)
    shapes = ["x".join(map(str, leaf.shape[1:])) for leaf in tree_leaves(example) if isinstance(leaf, Tensor)]
    yield {"input": " ".join(shapes), "parameters": sum(parameter.numel() for parameter in model.parameters())}
    with torch.no_grad():
        for _ in range(2):  # the second
            started = time.process_time()
            run_network(model, example)
            passed = time.process_time() - started
    yield {"pass": passed}
    started = time.process_time()
    groups = find_groups(model, example)
    yield {"find": time.process_time() - started}
    runs = _Runs()
    with shown(runs):
        started = time.process_time()
        groups = prove_groups(model, groups, example)
        took = time.process_time() - started
    yield {"prove": took, "runs": runs.count, "groups": groups.count, "proof_error": groups.proof_error}


def measure(seconds: float, cell: Cell) -> dict[str, Any]:
    """Find and prove the groups of one network in a process of its own."""
    return apart(figures, cell["kind"], cell["name"], seconds=seconds)


def table_of(rows: pd.DataFrame) -> str:
    """A line per network, and those that take longer than they should."""
    lines, slow = [], []
    for row in rows.to_dict("records"):
        limit = LIMITS.get(row["kind"], LIMIT)
        both = row["find"] + row["prove"]
        if not both <= limit:
            slow.append(f"{row['name']} ({row['refused'] or f'{both:.0f} s'})")
        lines.append([
            row["name"], row["kind"], row["input"], f"{row['parameters'] / 1e6:.1f}", f"{row['groups']:,.0f}",
            f"{row['pass']:.2f}", f"{row['find']:.1f}", f"{row['prove']:.1f}", f"{both:.1f}", f"{row['runs']:.0f}",
        ])  # fmt: skip
    heads = [
        "network",
        "kind",
        "input",
        "parameters, 1e6",
        "groups",
        "pass, s",
        "find, s",
        "prove, s",
        "both, s",
        "runs",
    ]
    limits = ", ".join(f"{limit:g} s for {kind}" for kind, limit in LIMITS.items())
    said = f"Beyond {limits} and {LIMIT:g} s for the others: {', '.join(slow) or 'none'}."
    return f"{markdown(heads, lines)}\n\n{said}"


def wanted(options: argparse.Namespace) -> list[dict[str, str]]:
    """The networks that were asked for."""
    cells = [{"kind": kind, "name": name} for kind, names in NAMES.items() for name in names.split()]
    unknown = set(options.names) - {cell["name"] for cell in cells}
    if unknown:
        raise RecipeError(f"no such network: {', '.join(sorted(unknown))}; --list names them all")
    return [cell for cell in cells if not options.names or cell["name"] in options.names]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare what is measured."""
    parser.add_argument("--names", nargs="+", default=[], metavar="NETWORK", help="a few of them")
    parser.add_argument("--seconds", type=float, default=600.0, help="limit of each network")


MEASUREMENT = Measurement(
    "proof_time",
    __doc__,
    wanted,
    lambda options: Cells(KEYS, VALUES, partial(measure, options.seconds), ("input",)),
    lambda rows, _: table_of(rows),
    add_options,
)
