"""What tying the skip connections is worth: channel groups against layers taken one by one.

python -m experiments.studies.ablate_groups
"""

from __future__ import annotations

import sys

from torch import nn

from depfuse import fuse
from depfuse.groups import ChannelGroups
from experiments.lib.ablation import Ablation, Case, Setting, main
from experiments.lib.untied import only, untied

WEIGHTS = {"criterion": "weights"}
VARIANTS = {
    "channel groups": "groups",
    "layers one by one, own outputs": "layers",
    "layers one by one, end of the block": "streams",
    "inside the blocks only": "inside",
    "streams only": "on streams",
    "nothing": "nothing",
}


def groups_of(case: Case) -> ChannelGroups:
    """What is permuted, and what of it together."""
    whole, network, variant = case.of.groups, case.of.inputs.models[0], case.setting.more.get("tied", "groups")
    if variant in ("layers", "streams"):
        return untied(whole, network, streams=variant == "streams")
    if variant == "nothing":
        return ChannelGroups(())
    return whole if variant == "groups" else only(whole, streams=variant == "on streams")


def make(case: Case) -> nn.Module:
    """The child, BatchNorm reset."""
    models, recipe = case.of.inputs.models, case.recipe
    return fuse(models, recipe, case.calibration, example=case.example, groups=groups_of(case)).child


def _settings(recipe: dict[str, str]) -> dict[str, Setting]:
    return {
        name: Setting({} if variant == "nothing" else recipe, more={} if variant == "groups" else {"tied": variant})
        for name, variant in VARIANTS.items()
        if not (recipe and variant == "streams")  # weights are watched nowhere
    }


ABLATION = Ablation(
    "ablate_groups",
    __doc__,
    {"matched by activations": _settings({}), "matched by weights": _settings(WEIGHTS)},
    families=("digits", "digits-deep", "resnet20"),
    make=make,
)

if __name__ == "__main__":
    sys.exit(main(ABLATION))
