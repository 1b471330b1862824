"""Planted permutations are found again, by weights and by activations: one network of each family."""

from __future__ import annotations

import pytest

from depfuse.align import Coupling
from experiments.proofs import recovery

# One of each kind, with the number of its images and their side; experiments/proofs/recovery.py has all families.
# Grouped convolutions are recovered in test_copies.py.
KINDS = {
    "torchvision:mobilenet_v3_small": (16, 96), "torchvision:squeezenet1_0": (16, 96), "timm:repvgg_a0": (16, 64),
    "timm:convnextv2_atto": (16, 64), "timm:vit_tiny_patch16_224": (32, 224),
}  # fmt: skip


def check(name: str, count: int, pixels: int) -> None:
    found = recovery.recover(name, count, pixels=pixels)
    assert found.groups == found.by_weights == found.by_activations, found.missed
    assert found.groups > 0


def test_planted_permutations_are_recovered() -> None:
    check("torchvision:shufflenet_v2_x0_5", 16, 64)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::depfuse.errors.DepfuseWarning")
@pytest.mark.parametrize("name", KINDS)
def test_planted_permutations_are_recovered_in_every_kind(name: str) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm", reason="timm's networks need timm: pip install -e '.[timm]'")
    check(name, *KINDS[name])


def test_a_group_that_is_not_recovered_is_named() -> None:
    """Leaving everything where it is brings no group back."""
    calibration = recovery.images(4, (3, 32, 32), seed=0)
    planted = recovery.plant("cifar_resnet20", calibration, seed=0)
    identities = {group.name: Coupling.identity(group.size) for group in planted.groups.free}
    assert set(planted.missed(identities)) == {group.name for group in planted.groups.free}
