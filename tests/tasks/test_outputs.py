"""What outputs are compared by: class scores by cross-entropy, one output and everything else by squared error."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from depfuse import Recipe, fuse
from depfuse.data import Loader, Preprocessing, Split
from depfuse.ensemble.distance import at_best_scale
from depfuse.ensemble.targets import TEMPERATURE, ensemble_logits, ensemble_outputs
from depfuse.errors import RecipeError
from depfuse.merge import fisher_information
from depfuse.tasks.outputs import CLASSES, NUMBERS, task_by_shape
from tests.divergences import curvature_product, divergence, sample, slope


@pytest.mark.parametrize(
    ("shape", "task"),
    [
        ((4, 2), CLASSES),
        ((4, 10), CLASSES),
        ((4, 1), NUMBERS),
        ((4,), NUMBERS),
        ((4, 3, 5, 5), NUMBERS),
        ((4, 7, 16), NUMBERS),
    ],
)
def test_the_shape_says_what_outputs_are(shape, task):
    assert task_by_shape(torch.zeros(shape)) is task


@pytest.mark.parametrize("shape", [(5, 3), (5, 1), (5,), (5, 2, 4, 4)])
def test_slope_and_curvature_are_the_divergences_derivatives(shape):
    output, target, change = torch.randn(3, *shape, dtype=torch.float64)
    output.requires_grad_(True)
    (gradient,) = torch.autograd.grad(divergence(output, target), output)
    torch.testing.assert_close(slope(output.detach(), target), gradient)
    by_hand = torch.autograd.functional.hvp(lambda own: divergence(own, target), output.detach(), change)[1]
    torch.testing.assert_close(curvature_product(change, output.detach()), by_hand)


@pytest.mark.parametrize("shape", [(1, 3), (1, 1), (1, 2, 2)])
def test_random_directions_have_the_curvature_as_covariance(shape):
    output = torch.randn(shape, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    rows = sample(output.expand(40_000, *shape[1:]), generator).reshape(40_000, -1)
    found = rows.T @ rows / len(rows)
    eye = torch.eye(rows.shape[1], dtype=torch.float64).reshape(-1, *shape[1:])
    wanted = torch.stack([curvature_product(row[None], output).reshape(-1) for row in eye])
    torch.testing.assert_close(found, wanted, atol=0.01, rtol=0)


@pytest.mark.parametrize("shape", [(6, 1), (6,), (6, 2, 3)])
def test_numbers_of_an_ensemble_are_their_weighted_mean(shape):
    outputs = list(torch.randn(2, *shape))
    mean = 0.25 * outputs[0] + 0.75 * outputs[1]
    torch.testing.assert_close(ensemble_logits(outputs, (0.25, 0.75), temperature=TEMPERATURE), mean)
    torch.testing.assert_close(ensemble_outputs(outputs, (0.25, 0.75)), mean)
    losses, scale = at_best_scale(2 * mean, mean)
    torch.testing.assert_close(losses, mean.reshape(6, -1).square().mean(1))
    assert scale == 1.0


class Plain(nn.Module):
    """Convolutions and a head, one number per image, or a map of numbers."""

    def __init__(self, outputs: int = 1, kind: str = "row") -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 12, 3, 1, 1), nn.BatchNorm2d(12)
        self.head = nn.Conv2d(12, outputs, 1)
        self.kind = kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        if self.kind == "map":
            return self.head(x)
        x = self.head(x).mean((2, 3))
        return x if self.kind == "row" else x[:, 0]


def tinted(count: int = 300) -> Loader:
    generator = torch.Generator().manual_seed(0)
    colour = torch.rand(count, 3, 1, 1, generator=generator)
    pixels = (colour * 180 + torch.rand(count, 3, 8, 8, generator=generator) * 75).to(torch.uint8)
    split = Split(pixels, torch.zeros(count, dtype=torch.int64))
    return Loader(split, Preprocessing.create(mean=(0.5,) * 3, std=(0.25,) * 3), batch_size=100)


def trained(seed: int, kind: str) -> nn.Module:
    torch.manual_seed(seed)
    model = Plain(2 if kind == "map" else 1, kind).train()
    inputs = torch.cat([images for images, _ in tinted()])
    redness = (inputs[:, 0] - inputs[:, 1]).mean((1, 2)) + 3.0
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(60):
        chosen = torch.randint(len(inputs), (64,))
        given = model(inputs[chosen])
        target = redness[chosen].reshape(-1, *[1] * (given.dim() - 1)).expand_as(given)
        optimiser.zero_grad()
        F.mse_loss(given, target).backward()
        optimiser.step()
    return model.eval()


@pytest.mark.parametrize("kind", ["row", "flat", "map"])
@pytest.mark.parametrize(
    "settings",
    [{"refit": "ridge", "refit_steps": 16}, {"goal": "best", "refit_steps": 8}],
    ids=["ridge", "best"],
)
@pytest.mark.filterwarnings("ignore::depfuse.errors.DepfuseWarning")
def test_a_child_of_networks_with_numbers_follows_their_mean(kind, settings):
    parents = [trained(seed, kind) for seed in (0, 1)]
    child = fuse(copy.deepcopy(parents), Recipe(**settings), calibration=tinted()).child
    inputs = torch.cat([images for images, _ in tinted()])
    with torch.no_grad():
        wanted = (parents[0](inputs) + parents[1](inputs)) / 2
        error = (child(inputs) - wanted).square().mean()
    assert float(error / wanted.var()) < 0.2


def test_fisher_information_of_one_output_is_that_of_squared_error():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 1)).eval()
    loader = tinted(20)
    inputs = torch.cat([images for images, _ in loader]).flatten(1)
    found = fisher_information(model, loader)
    torch.testing.assert_close(found["1.weight"][0].float(), inputs.square().mean(0))


def test_one_head_for_networks_with_one_output_is_refused():
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(F.relu(self.conv(x)).mean((2, 3)))

    recipe = Recipe(refit="none", joint_head="always", calibration=300)
    with pytest.raises(RecipeError, match="tells classes apart, and the task is regression"):
        fuse([Linear().eval(), Linear().eval()], recipe, calibration=tinted())
