"""Parents' embeddings are brought into one space by a rotation that is folded into their last layers."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depfuse import fuse
from depfuse.data import Loader, Split
from depfuse.teach.one_space import bring_into_one_space, rotation


class Embedding(nn.Module):
    def __init__(self, last: str = "unit", maps: bool = False) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.head: nn.Module = nn.Conv2d(12, 6, 1) if maps else nn.Linear(48, 6, bias=last != "no bias")
        self.last, self.maps = last, maps

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        x = self.head(x if self.maps else F.adaptive_avg_pool2d(x, 2).flatten(1))
        return {"unit": lambda z: F.normalize(z, dim=1), "relu": F.relu}.get(self.last, lambda z: z)(x)


def images() -> Loader:
    return Loader(Split(torch.randn(120, 1, 8, 8, generator=torch.Generator().manual_seed(0))), batch_size=40)


def turned(parent: Embedding, seed: int = 0) -> tuple[Embedding, Tensor]:
    """The parent with its embeddings rotated at random, and the rotation."""
    other = copy.deepcopy(parent)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(seed)))[0]
    with torch.no_grad():
        other.head.weight.copy_(torch.einsum("ij,j...->i...", turn, parent.head.weight))
        if parent.head.bias is not None:
            other.head.bias.copy_(turn @ parent.head.bias)
    return other, turn


def test_the_nearest_rotation_is_found() -> None:
    moved = torch.randn(50, 5, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
    torch.testing.assert_close(rotation(moved @ turn.T, moved), turn)
    noisy = moved @ turn.T + 0.1 * torch.randn(50, 5, dtype=torch.float64)
    found = rotation(noisy, moved)
    torch.testing.assert_close(found @ found.T, torch.eye(5, dtype=torch.float64))
    assert float((noisy - moved @ found.T).square().sum()) <= float((noisy - moved @ turn.T).square().sum())


@pytest.mark.parametrize("last", ["unit", "plain", "no bias"])
@pytest.mark.parametrize("maps", [False, True])
def test_a_rotated_parent_comes_back(last: str, maps: bool) -> None:
    torch.manual_seed(0)
    parent = Embedding(last, maps).eval()
    others = [turned(parent, seed)[0] for seed in (1, 2)]
    found = bring_into_one_space([parent, *others], images())
    assert [own.parent for own in found] == [1, 2]
    batch = torch.randn(5, 1, 8, 8)
    for own, other in zip(found, others, strict=True):
        assert own.before < 0.9 < own.after
        assert own.after == pytest.approx(1.0, abs=1e-5)
        torch.testing.assert_close(other(batch), parent(batch), atol=1e-4, rtol=1e-3)


def test_what_cannot_turn_stays() -> None:
    torch.manual_seed(0)
    parent = Embedding("relu").eval()
    other, _ = turned(parent)
    before = copy.deepcopy(other.state_dict())
    assert bring_into_one_space([parent, other], images()) == []  # a ReLU follows the layer
    assert all(torch.equal(tensor, other.state_dict()[key]) for key, tensor in before.items())
    same = copy.deepcopy(Embedding("plain").eval())
    assert bring_into_one_space([same, copy.deepcopy(same)], images()) == []  # they are in one space already


def test_a_fusion_rotates_copies_and_says_so() -> None:
    torch.manual_seed(0)
    parent = Embedding().eval()
    other, _ = turned(parent)
    before = copy.deepcopy(other.state_dict())
    result = fuse([parent, other], {"refit": "none", "renorm": "none"}, images(), task="features")
    assert "parent 2 was rotated into the space of parent 1 (mean cosine" in result.meaning.because
    batch = torch.randn(5, 1, 8, 8)
    torch.testing.assert_close(result.child(batch), parent(batch), atol=1e-4, rtol=1e-3)
    assert all(torch.equal(tensor, other.state_dict()[key]) for key, tensor in before.items())
    unlabelled = result.comparison(images())
    assert unlabelled.child.ensemble == pytest.approx(1.0, abs=1e-4), "parents are compared in one space"
