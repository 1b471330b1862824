"""Parents from files whose cards say that they know different classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from depfuse import Parents, fuse, load
from depfuse.errors import RecipeError
from depfuse.io.cards import Card
from depfuse.io.checkpoint import write_checkpoint
from depfuse.models import build_network

ARCH = "digits_resnet(width=0.25)"
IMAGES = torch.rand(40, 1, 8, 8)


def network(classes: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_network(ARCH, classes=classes).eval()


def written(folder: Path, name: str, seed: int, **known: tuple[int, ...] | tuple[str, ...] | None) -> nn.Module:
    path = folder / f"{name}.safetensors"
    write_checkpoint(path, network(3, seed).state_dict(), Card(architecture=ARCH, data="digits", **known))
    return load(path)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"classes": (0, 1, 2)}, {"classes": (3, 4, 5)}),
        ({"classes": (0, 1, 2), "names": ("ant", "bee", "cow")}, {"classes": (3, 4, 5)}),
        ({"classes": (0, 1, 2), "names": ("a", "b", "c")}, {"classes": (0, 1, 2), "names": ("d", "e", "f")}),
    ],
)
def test_what_cards_say_is_not_averaged_output_by_output(tmp_path, first, second) -> None:
    parents = [
        written(tmp_path, name, seed, **{"classes": (0, 1, 2), **own})
        for name, seed, own in [("a", 0, first), ("b", 1, second)]
    ]
    with pytest.raises(
        RecipeError, match=r"parent 1 calls its outputs .*say so by `labels`, such as \[0, 1, 2\], \[3, 4, 5\]"
    ):
        fuse(parents, "fast", IMAGES)
    known = Parents(parents, labels=[(0, 1, 2), (3, 4, 5)], template=network(6))
    assert fuse(known, "fast", IMAGES).child(IMAGES).shape == (40, 6)
    assert fuse(Parents(parents, labels=[range(3), range(3)]), "fast", IMAGES).child(IMAGES).shape == (40, 3)


def test_equal_cards_and_other_networks_are_fused(tmp_path) -> None:
    first, second = (written(tmp_path, name, seed, classes=(3, 4, 5)) for seed, name in enumerate("ab"))
    for parents in ([first, second], [first, network(3, 2)]):
        assert fuse(parents, "fast", IMAGES).child(IMAGES).shape == (40, 3)
