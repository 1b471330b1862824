"""Several tensors count, each by a task of its own: derivatives, weights, and children that learn all of them."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depfuse import fuse
from depfuse.data import Loader, Split
from depfuse.ensemble.targets import TEMPERATURE
from depfuse.errors import RecipeError
from depfuse.tasks.classes import Classes, Dense
from depfuse.tasks.features import Features
from depfuse.tasks.labels import Binary, Labels
from depfuse.tasks.regression import Regression
from depfuse.tasks.selection import find_counted
from depfuse.tasks.weighted import Weighted, WeightedPart, pack

SHAPES = {"kind": (4,), "map": (3, 2, 2), "labels": (5,), "sign": (), "box": (4,), "direction": (3,)}


def task() -> Weighted:
    kinds = {
        "kind": Classes(), "map": Dense(), "labels": Labels(), "sign": Binary(),
        "box": Regression(torch.tensor([1.0, 2.0, 0.5, 1.0])), "direction": Features(),
    }  # fmt: skip
    parts = [
        WeightedPart(name, kinds[name], torch.Size(shape), weight)
        for weight, (name, shape) in zip((1.0, 0.4, 1.0, 1.0, 1.0, 0.5), SHAPES.items(), strict=True)
    ]
    return Weighted(parts, [1.0, 1.0, 2.0, 1.0, 0.25, 1.0])


def packed(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    tensors = [2 * torch.randn(count, *shape, generator=generator, dtype=torch.float64) for shape in SHAPES.values()]
    return pack(tensors)


@pytest.mark.parametrize("temperature", [1.0, TEMPERATURE])
def test_the_slope_is_the_gradient_of_the_divergence(temperature: float) -> None:
    own, outputs = task(), packed(3)
    target = own.ensemble_target([packed(3, 1), packed(3, 2)], (0.3, 0.7), temperature)
    leaf = outputs.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(own.divergence(leaf, target, temperature), leaf)
    torch.testing.assert_close(own.slope(outputs, target, temperature), gradient)
    same = own.ensemble_target([outputs], (1.0,), temperature)
    assert float(own.divergence(outputs, same, temperature)) == pytest.approx(0.0, abs=1e-6)


def test_the_curvature_is_that_of_the_divergence_at_its_minimum() -> None:
    own, outputs, change = task(), packed(3), packed(3, 1)
    target = own.ensemble_target([outputs], (1.0,), 2.0)
    _, wanted = torch.autograd.functional.hvp(lambda z: own.divergence(z, target, 2.0), outputs, change)
    torch.testing.assert_close(own.curvature_product(change, outputs, 2.0), wanted, atol=1e-7, rtol=1e-5)


def test_samples_and_factors_have_the_curvature_as_covariance() -> None:
    own, outputs = task(), packed(1)
    size = outputs.shape[1]
    wanted = torch.cat([own.curvature_product(row[None], outputs, 1.0) for row in torch.eye(size).double()])
    samples = own.sample(outputs.expand(60_000, size), torch.Generator().manual_seed(1), 1.0)
    torch.testing.assert_close(samples.T @ samples / 60_000, wanted, atol=0.02 * float(wanted.diagonal().max()), rtol=0)
    factor = own.factor(outputs[0], torch.eye(size).double())
    torch.testing.assert_close(factor.T @ factor, wanted)


def test_divergences_add_up_by_weight_and_unit() -> None:
    own, outputs, target = task(), packed(5), packed(5, 1)
    parts = zip(own.parts, own.split(outputs), own.split(target), (1, 1, 2, 1, 0.25, 1), strict=True)
    wanted = sum(part.weight / unit * part.task.divergence(z, t, 1.0) for part, z, t, unit in parts)
    torch.testing.assert_close(own.divergence(outputs, target, 1.0), wanted)
    mean = own.mean([outputs], (1.0,))
    torch.testing.assert_close(mean, own.predictions(outputs))
    assert bool((own.losses(outputs, mean) < own.losses(target, mean)).all())
    assert float(own.agreements(outputs, mean)) == 5
    with pytest.raises(RecipeError, match="images of one size"):
        own.split(outputs[:, 1:])


Outputs = namedtuple("Outputs", ["logits", "aux_logits"])


@pytest.mark.parametrize(
    ("output", "wanted"),
    [
        (torch.rand(3, 4), {}),
        ({"out": torch.rand(3, 4, 8, 8), "aux": torch.rand(3, 4, 8, 8)}, {"out": 1.0, "aux": 0.4}),
        (Outputs(torch.rand(3, 4), torch.rand(3, 4)), {"logits": 1.0, "aux_logits": 0.4}),
        ({"logits": torch.rand(3, 4), "hidden_states": (torch.rand(3, 9), torch.rand(3, 9))}, {"logits": 1.0}),
        ((torch.rand(3, 4), torch.rand(3), torch.rand(2, 3, 5), torch.arange(3)), {"0": 1.0, "1": 1.0}),
        (
            [torch.rand(3, 2, 8, 8), torch.rand(3, 2, 4, 4), torch.rand(3, 2, 2, 2)],
            {"0": 1.0, "1": 0.5, "2": 0.25},
        ),
        ({"box": {"at": torch.rand(3, 2), "size": torch.rand(3, 2)}}, {"box.at": 1.0, "box.size": 1.0}),
    ],
)
def test_the_tensors_that_count_are_found_with_their_weights(output: Any, wanted: dict[str, float]) -> None:
    assert {own.name: own.weight for own in find_counted(output, 3)} == wanted


class TwoHeads(nn.Module):
    """Which block is brightest, and how bright all are; with an auxiliary head where that is asked for."""

    def __init__(self, auxiliary: bool) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.deep, self.deep_norm = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.kind, self.other = nn.Linear(64, 4), nn.Linear(64, 4 if auxiliary else 2)
        self.auxiliary = auxiliary

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        early = F.relu(self.norm(self.conv(x)))
        late = F.adaptive_avg_pool2d(F.relu(self.deep_norm(self.deep(early))), 2).flatten(1)
        if self.auxiliary:
            return {"out": self.kind(late), "aux": self.other(F.adaptive_avg_pool2d(early, 2).flatten(1))}
        return {"kind": self.kind(late), "light": self.other(late)}


def blocks(count: int = 200) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    light = torch.rand(count, 1, 2, 2, generator=generator)
    images = F.interpolate(light, scale_factor=4) + 0.1 * torch.randn(count, 1, 8, 8, generator=generator)
    means = light.flatten(1)
    return images - 0.5, means.argmax(1), torch.stack([means.mean(1), means.std(1)], 1) * 10


def trained(auxiliary: bool, seed: int) -> nn.Module:
    images, kind, light = blocks()
    torch.manual_seed(seed)
    network = TwoHeads(auxiliary).train()
    optimiser = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(80):
        chosen = torch.randint(len(images), (64,))
        found = network(images[chosen])
        loss = F.cross_entropy(found["out" if auxiliary else "kind"], kind[chosen])
        if auxiliary:
            loss = loss + F.cross_entropy(found["aux"], kind[chosen])
        else:
            loss = loss + F.mse_loss(found["light"], light[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network.eval()


@pytest.mark.parametrize("auxiliary", [True, False])
def test_a_child_learns_all_tensors(auxiliary: bool) -> None:
    parents, (images, kind, _) = [trained(auxiliary, seed) for seed in (0, 1)], blocks()
    data = Loader(Split(images), batch_size=50)
    recipe = {"refit": {"name": "ridge", "steps": 10}}
    result = fuse(parents, recipe, data)
    assert result.recipe.task.name == "weighted"
    main, other = ("out", "aux") if auxiliary else ("kind", "light")
    alone = fuse(parents, recipe, data, scores=lambda output: output[main]).child
    wanted = "aux, classes" if auxiliary else "light, regression"
    assert wanted in result.meaning.because
    with torch.no_grad():
        found, only = (network(images) for network in (result.child, alone))
        target = sum(parent(images)[other] for parent in parents) / 2

    def error(output: dict[str, Tensor]) -> float:
        if auxiliary:
            return F.kl_div(output[other].log_softmax(1), target.softmax(1), reduction="batchmean").item()
        return float(((output[other] - target) / target.std(0)).square().mean())

    assert float((found[main].argmax(1) == kind).float().mean()) > 0.9
    assert error(found) < error(only)
    assert error(found) < 0.1
    assert isinstance(result.child(images[:2]), dict)


def test_one_tensor_has_one_task() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    with pytest.raises(RecipeError, match="`task=weighted` is of several tensors"):
        fuse([network, network], {"refit": "none"}, Loader(Split(blocks(20)[0]), batch_size=10), task="weighted")
