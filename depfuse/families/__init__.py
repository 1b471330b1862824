"""Settings that suit a family of networks: what `depfuse fuse` does where nobody says how.

Each family is a JSON file here: what belongs to it, the settings of a `Recipe` that searches on real networks found
best, and what they were found on. A network belongs to the family of its layers, if it is not much larger than those
that were searched on and can be refitted.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from depfuse.data.loader import Loader
from depfuse.merge import can_be_refitted
from depfuse.recipes import shipped
from depfuse.renorm import has_batch_norm
from depfuse.running import evaluating

LARGEST = 1_000_000_000  # multiply-adds for an image
NEUTRAL = frozenset(
    {
        "weights", "reference", "order", "width_of", "calibration", "batch_size", "seed", "parents_renorm",
        "joint_head", "labelled", "distil", "finetune", "learning_rate",
    }
)  # fmt: skip
"""Settings that say nothing of the method."""


@dataclass(frozen=True)
class Family:
    """Networks that want the same settings.

    Attributes
    ----------
    name, title
        What it is called, and which networks belong to it.
    found
        On what the settings were found, and what they gave.
    settings
        Fields of a `Recipe`; all others have their defaults.
    """

    name: str
    title: str
    found: str
    settings: Mapping[str, Any]


def names() -> list[str]:
    """Names of all families, in the order of the alphabet."""
    return shipped(__name__)


def family(name: str) -> Family:
    """A family by its name, one of `names()`."""
    fields = json.loads((files(__name__) / f"{name}.json").read_text(encoding="utf-8"))
    return Family(name, fields["title"], fields["found"], fields["settings"])


def family_for(model: nn.Module, images: Loader, chosen: Collection[str] = ()) -> Family | None:
    """The family whose settings a fusion of such networks gets.

    Parameters
    ----------
    model
        One of the parents.
    images
        Calibration images.
    chosen
        Names of the settings that the user has chosen: one of a method speaks against all settings of a family.

    Returns
    -------
    Family or None
        None where the method was chosen, or the network is of no family, too large, or cannot be refitted.
    """
    name = _name(model)
    if name is None or not NEUTRAL.issuperset(chosen):
        return None
    few = images.first(2)
    example = next(iter(few))[0][:1]
    if multiply_adds(model, example) > LARGEST or not can_be_refitted(model, few):
        return None
    return family(name)


def multiply_adds(model: nn.Module, image: Tensor) -> int:
    """Multiplications with an addition that a forward pass of one image (1, C, H, W) takes."""
    with torch.no_grad(), evaluating(model), FlopCounterMode(display=False) as counter:
        model(image)
    return int(counter.get_total_flops()) // 2


def _name(model: nn.Module) -> str | None:
    """Convolutional networks with BatchNorm, or without any normalisation; all others are of no family yet."""
    kinds = {type(module) for module in model.modules()}
    convolutional = any(issubclass(kind, nn.Conv2d) for kind in kinds)
    attending = any(issubclass(kind, nn.MultiheadAttention) for kind in kinds)
    otherwise = any(issubclass(kind, (nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d)) for kind in kinds)
    if not convolutional or attending or otherwise:
        return None
    return "batch-norm" if has_batch_norm(model) else "plain"
