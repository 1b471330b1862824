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


@pytest.mark.parametrize("orders", [((0, 1, 2), (2, 0, 1)), ((2, 1, 0), (2, 1, 0)), ((1, 2, 0), (0, 2, 1))])
@pytest.mark.parametrize("half", [False, True])
def test_labels_in_any_order_make_the_child_of_those_in_ascending_order(orders, half) -> None:
    """Its outputs are those of parents whose rows were put into one order by hand; the parents are only read."""
    kind = torch.bfloat16 if half else torch.float32
    plain = [network(3, seed).to(kind) for seed in range(2)]
    shuffled = [network(3, seed).to(kind) for seed in range(2)]
    with torch.no_grad():
        for model, order in zip(shuffled, orders, strict=True):
            for tensor in model.linear.state_dict().values():
                tensor.copy_(tensor[list(order)])
    before = [model.linear.weight.clone() for model in shuffled]
    expected = fuse(plain, "fast", IMAGES)
    found = fuse(Parents(shuffled, labels=torch.tensor(orders) if half else orders), "fast", IMAGES)
    for key, tensor in expected.child.state_dict().items():
        assert torch.equal(found.child.state_dict()[key], tensor)
    assert torch.equal(before[1], shuffled[1].linear.weight)
    test = (IMAGES, torch.arange(40) % 3)
    scores = [[own.accuracy for own in result.comparison(test).parents] for result in (expected, found)]
    assert scores[0] == scores[1]


def test_outputs_that_do_not_follow_their_last_layer_are_refused() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.scale = network(3), torch.tensor([1.0, 2.0, 3.0])

        def forward(self, images):
            return self.body(images) * self.scale

    with pytest.raises(RecipeError, match="not in ascending order"):
        fuse(Parents([Scaled(), Scaled()], labels=[(0, 1, 2), (1, 0, 2)]), "fast", IMAGES)


def test_equal_cards_and_other_networks_are_fused(tmp_path) -> None:
    first, second = (written(tmp_path, name, seed, classes=(3, 4, 5)) for seed, name in enumerate("ab"))
    for parents in ([first, second], [first, network(3, 2)]):
        assert fuse(parents, "fast", IMAGES).child(IMAGES).shape == (40, 3)
