"""Planted permutations are found again, by weights and by activations: one network of each family."""

from __future__ import annotations

import pytest

from depfuse.align import Coupling
from experiments.proofs import recovery

FAST = ("torchvision:shufflenet_v2_x0_5",)
# One of each kind; experiments/recovery.py goes through all families.
KINDS = (
    "torchvision:mobilenet_v3_small", "torchvision:squeezenet1_0", "torchvision:regnet_y_400mf", "timm:repvgg_a0",
    "timm:convnextv2_atto", "timm:vit_tiny_patch16_224",
)  # fmt: skip


def check(name: str) -> None:
    found = recovery.recover(name)
    assert found.groups == found.by_weights == found.by_activations, found.missed
    assert found.groups > 0


@pytest.mark.parametrize("name", FAST)
def test_planted_permutations_are_recovered(name: str) -> None:
    check(name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::depfuse.errors.DepfuseWarning")
@pytest.mark.parametrize("name", KINDS)
def test_planted_permutations_are_recovered_in_every_kind(name: str) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm", reason="timm's networks need timm: pip install -e '.[timm]'")
    check(name)


def test_a_group_that_is_not_recovered_is_named() -> None:
    """Leaving everything where it is brings no group back."""
    calibration = recovery.images(4, (3, 32, 32), seed=0)
    planted = recovery.plant("cifar_resnet20", calibration, seed=0)
    identities = {group.name: Coupling.identity(group.size) for group in planted.groups.free}
    assert set(planted.missed(identities)) == {group.name for group in planted.groups.free}
