"""Are planted permutations found again? One network of each family, by weights and by activations.

    python -m experiments run recovery

Seconds a network, minutes for the largest; all cores. See `plant` for how the parents are made.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from depfuse import Recipe
from depfuse.align import Couplings, align, apply_couplings
from depfuse.align.costs import DISTANCES
from depfuse.align.problem import MatchingProblem
from depfuse.align.statistics.moments import collect_moments
from depfuse.align.transport import emd
from depfuse.data import Loader, Preprocessing, Split
from depfuse.groups import ChannelGroups, find_groups, prove_groups
from depfuse.groups.channel_group import random_permutations
from depfuse.models import build_network, example_shape
from depfuse.renorm import renormalise
from experiments.lib.cells import Cell, Cells
from experiments.lib.measurement import Measurement
from experiments.lib.processes import CellError
from experiments.lib.tables import markdown

KEYS = ("name", "images", "seed")
VALUES = ("groups", "channels", "by_weights", "by_activations", "weights_seconds", "activations_seconds")
NOISE = 0.01  # of each parameter's standard deviation
TORCHVISION = """
    alexnet vgg11_bn resnet18 wide_resnet50_2 resnext50_32x4d densenet121 googlenet inception_v3 mobilenet_v2
    mobilenet_v3_small mnasnet0_5 squeezenet1_0 shufflenet_v2_x0_5 efficientnet_b0 efficientnet_v2_s regnet_y_400mf
    convnext_tiny vit_b_16 swin_t swin_v2_t maxvit_t
"""
TIMM = """
    resnet18 resnext26ts seresnet18 ecaresnet26t skresnet18 res2net50_14w_8s regnetx_002 nf_regnet_b0 densenet121
    dla34 hrnet_w18_small repvgg_a0 mobilenetv3_small_050 mobilenetv4_conv_small_050 efficientnet_b0
    mnasnet_small ghostnet_100 rexnetr_200 convnextv2_atto nfnet_l0 cspresnet50 darknet21 xception41 dpn48b
    selecsls42b vit_tiny_patch16_224 deit_tiny_patch16_224 swin_tiny_patch4_window7_224
"""
NAMES = [f"torchvision:{name}" for name in TORCHVISION.split()] + [f"timm:{name}" for name in TIMM.split()]


@dataclass(frozen=True)
class Recovery:
    """What was found again for one network; the groups that were not, by name."""

    name: str
    groups: int
    channels: int
    by_weights: int
    by_activations: int
    weights_seconds: float
    activations_seconds: float
    missed: str


@dataclass(frozen=True, eq=False)
class Planted:
    """Two parents of which the second is the first in another order and with noise.

    Attributes
    ----------
    original, permuted
        State dicts of the first parent and of the second without its noise.
    """

    models: Sequence[nn.Module]
    groups: ChannelGroups
    original: dict[str, Tensor]
    permuted: dict[str, Tensor]

    def missed(self, couplings: Couplings) -> list[str]:
        """Names of the groups that the couplings do not bring back."""
        found = apply_couplings(self.groups, couplings, self.permuted)
        return [
            group.name
            for group in self.groups.free
            if not all(
                torch.equal(slot.read(found[slot.key]), slot.read(self.original[slot.key])) for slot in group.slots
            )
        ]


def images(count: int, shape: Sequence[int], seed: int, batch_size: int = 8) -> Loader:
    """Random images (count, *shape) with structure at several scales, more or less of each in every image."""
    generator = torch.Generator().manual_seed(seed)
    channels, *size = shape
    pixels = torch.zeros(count, channels, *size)
    extent = min(size)
    while extent >= 1:
        coarse = torch.randn(count, channels, *[max(1, side // extent) for side in size], generator=generator)
        strength = torch.randn(count, channels, 1, 1, generator=generator).exp()
        pixels += strength * nn.functional.interpolate(coarse, size=tuple(size), mode="bilinear")
        extent //= 2
    pixels = (pixels - pixels.mean()) / pixels.std()
    split = Split((128 + 50 * pixels).clamp(0, 255).to(torch.uint8), torch.zeros(count, dtype=torch.int64))
    return Loader(split, Preprocessing(mean=(0.5,) * channels, std=(0.2,) * channels), batch_size=batch_size)


def plant(architecture: str, calibration: Loader, seed: int) -> Planted:
    """Two parents of an architecture, the second a permuted copy of the first with noise.

    Parent A is a network with random weights, of which no channel is silent: vectors that are constant at
    initialisation (scales, biases) are drawn at random, and BatchNorm statistics are those of its inputs. Parent B is A
    with all free groups permuted at random, blocks together with what is inside them, and normal noise of 1 % of each
    parameter's standard deviation added.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    first, second = build_network(architecture).eval(), build_network(architecture).eval()
    with torch.no_grad():
        for parameter in first.parameters():
            if parameter.numel() > 1 and bool((parameter == parameter.reshape(-1)[0]).all()):
                size = float(parameter.reshape(-1)[0]) or 0.1
                parameter.copy_(size * (0.5 + torch.rand(parameter.shape, generator=generator)))
    renormalise(first, "auto", calibration)
    batch, _ = next(iter(calibration))
    groups = prove_groups(first, find_groups(first, batch[:1]), batch[:1])
    state = dict(first.state_dict())
    for group in groups.free:
        state = group.permute(state, random_permutations(groups, seed)[group.name])
    parameters = dict(first.named_parameters(remove_duplicate=False))
    noisy = {
        key: tensor + NOISE * tensor.std() * torch.randn(tensor.shape, generator=generator)
        if key in parameters and tensor.numel() > 1
        else tensor
        for key, tensor in state.items()
    }
    with torch.no_grad():
        for key, tensor in second.state_dict().items():
            tensor.copy_(noisy[key])
    return Planted((first, second), groups, dict(first.state_dict()), state)


def recover(architecture: str, count: int = 32, seed: int = 0, pixels: int | None = None) -> Recovery:
    """Plant permutations in a network and find them by both criteria.

    A group counts as recovered where the found coupling, applied to B without its noise, brings back exactly A's
    entries in all tensors of the group. Activations are those on random images, read on both sides of the
    non-linearities and compared by every distance that depfuse has; the couplings count under which the weights of the
    two are nearest. Images have the size that suits the network, or `pixels` as both sides.
    """
    channels, *sides = example_shape(architecture)
    calibration = images(count, (channels, *(sides if pixels is None else [pixels] * 2)), seed)
    planted = plant(architecture, calibration, seed)
    started = time.perf_counter()
    by_weights = align(planted.models, planted.groups, Recipe(criterion="weights", restarts=1).align, None).couplings[1]
    halfway = time.perf_counter()
    recipe = Recipe(taps="both")
    moments = collect_moments(planted.models, planted.groups, calibration, recipe.align.taps)[0]
    problem = MatchingProblem(planted.groups, (planted.models[0], planted.models[1]), recipe.align, moments)
    by_activations = min((problem.by_activations(distance, emd) for distance in DISTANCES), key=problem.distance)
    seconds = [round(halfway - started, 2), round(time.perf_counter() - halfway, 2)]
    missed = {"weights": planted.missed(by_weights), "activations": planted.missed(by_activations)}
    free = len(planted.groups.free)
    return Recovery(
        architecture,
        free,
        sum(group.size for group in planted.groups.free),
        free - len(missed["weights"]),
        free - len(missed["activations"]),
        *seconds,
        " ".join(f"{name} ({criterion})" for criterion, names in missed.items() for name in names),
    )


def measure(cell: Cell) -> dict[str, Any]:
    """Recover one network as a cell."""
    return asdict(recover(str(cell["name"]), int(cell["images"]), int(cell["seed"])))


def table_of(rows: pd.DataFrame) -> str:
    """Groups, and what of them was recovered by weights and by activations, in Markdown."""
    lines = [
        [
            row["name"],
            *(f"{row[name]:,.0f}" for name in ("groups", "channels")),
            *(f"{row[name] / row['groups']:.1%}" for name in ("by_weights", "by_activations")),
            f"{row['weights_seconds']:.1f} + {row['activations_seconds']:.1f}",
            row["missed"][:100] or row["refused"],
        ]
        for row in rows.to_dict("records")
    ]
    return markdown(["network", "groups", "channels", "by weights", "by activations", "seconds", ""], lines)


def wanted(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The networks that were named, or all."""
    return [{"name": name, "images": options.images, "seed": options.seed} for name in options.names]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare what is measured."""
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)


def judge(rows: pd.DataFrame) -> None:
    """Raise `CellError` where a group was not recovered."""
    if any(rows["missed"]):
        raise CellError("some groups were not recovered: see the last column")


MEASUREMENT = Measurement(
    "recovery",
    __doc__,
    wanted,
    lambda _: Cells(KEYS, VALUES, measure, ("missed",)),
    lambda rows, _: table_of(rows),
    add_options,
    judge=judge,
)
