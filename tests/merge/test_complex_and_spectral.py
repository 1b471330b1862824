"""Weights whose average is not entry by entry: complex ones, and those of spectral norms."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from depfuse import Recipe, find_groups, fuse
from depfuse.errors import RecipeError

MERGED_ONLY = {"refit": "none", "renorm": "none"}
IMAGES = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(3))


class Fourier(nn.Module):
    """A layer of complex weights between frequencies, as Fourier neural operators have it."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 4)
        self.weight = nn.Parameter(torch.randn(6, 6, dtype=torch.cfloat) / 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, H, W) to (N, 4)."""
        frequencies = torch.einsum("nchw,co->nohw", torch.fft.rfft2(self.body(x).relu()), self.weight)
        return self.head(torch.fft.irfft2(frequencies).relu().mean((2, 3)))


def with_norm(norm: Callable[..., nn.Module]) -> nn.Module:
    """Build a network whose layers all have a norm of their weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        layers = [norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), norm(nn.Conv2d(8, 8, 3)), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), norm(nn.Linear(8, 4)))


def pair(build: Callable[[], nn.Module]) -> list[nn.Module]:
    """Build two networks, the second with much larger originals."""
    parents = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        parents.append(build().train())
        for _ in range(30):  # power iteration
            parents[-1](IMAGES[:2])
    return [parent.eval() for parent in parents]


@pytest.mark.parametrize("criterion", ["weights", "activations"])
def test_complex_weights_are_averaged_and_matched(criterion: str) -> None:
    parents = pair(Fourier)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        result = fuse(parents, {**MERGED_ONLY, "align.criterion": criterion, "merge.weights": (0.0, 1.0)}, IMAGES)
    torch.testing.assert_close(result.child(IMAGES), parents[1](IMAGES), rtol=1e-3, atol=1e-4)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    moved = copy.deepcopy(parents[0])
    with torch.no_grad():
        moved.weight.copy_(parents[0].weight[:, order])
        moved.head.weight.copy_(parents[0].head.weight[:, order])
    child = fuse([parents[0], moved], {**MERGED_ONLY, "align.criterion": criterion}, IMAGES).child
    torch.testing.assert_close(child(IMAGES), parents[0](IMAGES), rtol=1e-3, atol=1e-4)


def test_fisher_and_partial_merging_with_complex_weights() -> None:
    parents = pair(Fourier)
    child = fuse(parents, {**MERGED_ONLY, "merge.average": "fisher"}, IMAGES).child
    first, second = (parent.weight.detach() for parent in parents)
    assert not torch.allclose(child.weight, first)
    assert not torch.allclose(child.weight, second)
    with pytest.raises(RecipeError, match="beside complex weights"):
        fuse(parents, {**MERGED_ONLY, "merge.keep_worst": 0.5}, IMAGES)


def test_complex_weights_that_are_not_finite_are_refused() -> None:
    parents = pair(Fourier)
    with torch.no_grad():
        parents[1].weight[0, 0] = complex(0, float("nan"))
    with pytest.raises(RecipeError, match="parent 2 holds NaN or infinite values in weight"):
        fuse(parents, MERGED_ONLY, IMAGES)


def test_complex_outputs_are_refused_by_that_name() -> None:
    class Phases(Fourier):
        def forward(self, x: Tensor) -> Tensor:
            return torch.view_as_complex(super().forward(x).unflatten(1, (2, 2)))

    with pytest.raises(RecipeError, match="Phases gives complex numbers, and outputs are compared as real ones"):
        fuse(pair(Phases), MERGED_ONLY, IMAGES)


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_an_average_has_singular_vectors_of_its_own(norm: Callable[..., nn.Module]) -> None:
    parents = pair(lambda: with_norm(norm))
    with torch.no_grad():  # as large as one likes: the norm divides by it
        for key, tensor in parents[1].state_dict().items():
            if key.endswith(("original", "_orig")):
                tensor.mul_(50)
    child = fuse(parents, MERGED_ONLY, IMAGES).child
    child(IMAGES)  # the older norm computes its weight then
    for place in (0, 2, 6):
        size = torch.linalg.matrix_norm(child[place].weight.flatten(1), 2)
        assert float(size.detach()) == pytest.approx(1.0, abs=0.02)
    own = fuse(parents, {**MERGED_ONLY, "merge.weights": (0.0, 1.0)}, IMAGES).child
    torch.testing.assert_close(own(IMAGES), parents[1](IMAGES), rtol=1e-4, atol=1e-5)
    same = fuse([parents[0], copy.deepcopy(parents[0])], MERGED_ONLY, IMAGES).child
    torch.testing.assert_close(same(IMAGES), parents[0](IMAGES), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "norm",
    [nn.utils.parametrizations.weight_norm, nn.utils.spectral_norm],
)
@pytest.mark.parametrize("renorm", ["repair", "data-free"])
def test_renorms_that_scale_weights_refuse_computed_ones(norm: Callable[..., nn.Module], renorm: str) -> None:
    parents = pair(lambda: with_norm(norm))
    with pytest.raises(RecipeError, match=f"renorm {renorm} changes the weights of layers, and 0 computes its own"):
        fuse(parents, Recipe(refit="none", renorm=renorm), IMAGES)


@pytest.mark.filterwarnings("ignore::depfuse.errors.DepfuseWarning")
def test_pruned_weights_are_averaged_as_they_are_computed_with() -> None:
    def pruned() -> nn.Module:
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
        prune.random_unstructured(network[0], "weight", 0.5)
        return network

    first, second = pair(pruned)
    own = pair(pruned)[1]
    weights = {key: value for key, value in first.state_dict().items() if not key.endswith("mask")}
    own.load_state_dict(weights, strict=False)  # the same order of channels, so that nothing is moved
    child = fuse([first, own], {**MERGED_ONLY, "align.allow_fixed": True, "align.criterion": "weights"}, IMAGES).child
    child(IMAGES), first(IMAGES), own(IMAGES)  # weights are computed as they run
    torch.testing.assert_close(child[0].weight.sum((1, 2, 3)).sum(), (first[0].weight + own[0].weight).sum() / 2)
    assert set(child[0].weight_mask.unique().tolist()) == {0.0, 1.0}
    alone = fuse([first, second], {**MERGED_ONLY, "align.allow_fixed": True, "merge.weights": (0.0, 1.0)}, IMAGES).child
    torch.testing.assert_close(alone(IMAGES), second(IMAGES))


def test_masks_of_pruned_weights_are_permuted_with_them() -> None:
    def pruned() -> nn.Module:
        layers = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        for place in (0, 2):
            prune.random_unstructured(layers[place], "weight", 0.5)
        return nn.Sequential(*layers)

    first = pair(pruned)[0]
    groups = find_groups(first, IMAGES)
    second = copy.deepcopy(first)
    state = second.state_dict()
    for group in groups.free:
        state = group.permute(state, torch.tensor([3, 1, 5, 0, 2, 4]))
    second.load_state_dict(state)
    child = fuse([first, second], {**MERGED_ONLY, "align.criterion": "weights"}, IMAGES).child
    torch.testing.assert_close(child(IMAGES), first(IMAGES), rtol=1e-4, atol=1e-5)
    assert torch.equal(child[2].weight_mask, first[2].weight_mask)
