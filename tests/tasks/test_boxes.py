"""Detectors: derivatives of their divergence, and whose boxes count."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from depfuse.errors import RecipeError
from depfuse.tasks.classes import Dense
from depfuse.tasks.detection import Detection
from depfuse.tasks.labels import Labels
from depfuse.tasks.regression import Regression
from depfuse.tasks.weighted import WeightedPart, pack

SHAPES = {"classes": (3, 2, 2), "boxes": (4, 2, 2), "size": (2,)}
KINDS = {"logits": (Labels(), None), "softmax": (Dense(), 0)}


def task(kind: str = "logits") -> Detection:
    classes, background = KINDS[kind]
    tasks = {"classes": classes, "boxes": Regression(torch.tensor([1.0, 2.0, 0.5, 1.0])), "size": Regression()}
    parts = [WeightedPart(name, tasks[name], torch.Size(shape), 1.0) for name, shape in SHAPES.items()]
    return Detection(parts, (None, 0, None), ((1,), (2,)), background, [0.2, 0.5, 1.0], seen=0.3)


def packed(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return pack([2 * torch.randn(count, *own, generator=generator, dtype=torch.float64) for own in SHAPES.values()])


@pytest.mark.parametrize("kind", KINDS)
def test_the_slope_is_the_gradient_of_the_divergence(kind: str) -> None:
    own, outputs = task(kind), packed(3)
    target = own.joint_mean([packed(3, 1), packed(3, 2)], (0.3, 0.7))
    leaf = outputs.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(own.divergence(leaf, target, 4.0), leaf)
    torch.testing.assert_close(own.slope(outputs, target, 4.0), gradient)
    assert float(own.divergence(outputs, outputs, 4.0)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_curvature_samples_and_factors_agree_at_the_minimum(kind: str) -> None:
    own, outputs = task(kind), packed(1)
    size = outputs.shape[1]
    matrix = torch.cat([own.curvature_product(row[None], outputs, 1.0) for row in torch.eye(size).double()])
    target = outputs.clone()
    hessian = torch.autograd.functional.hessian(lambda z: own.divergence(z[None], target, 1.0), outputs[0])
    torch.testing.assert_close(matrix, hessian, atol=1e-7, rtol=1e-5)
    samples = own.sample(outputs.expand(60_000, size), torch.Generator().manual_seed(1), 1.0)
    most = float(matrix.diagonal().max())
    torch.testing.assert_close(samples.T @ samples / 60_000, matrix, atol=0.02 * most, rtol=0)


def test_the_boxes_of_the_parent_that_sees_something_count() -> None:
    own = task()
    classes = torch.full((1, 3, 2, 2), -9.0)
    classes[0, 1, 0, 0] = classes[0, 2, 1, 1] = 9.0  # the first parent knows column 1, the second column 2
    outputs = [pack([classes, torch.full((1, 4, 2, 2), box), torch.zeros(1, 2)]) for box in (1.0, 5.0)]
    boxes = own.split(own.joint_mean(outputs, (0.5, 0.5)))[1]
    torch.testing.assert_close(boxes[0, :, 0, 0], torch.full((4,), 1.0), atol=0.01, rtol=0)
    torch.testing.assert_close(boxes[0, :, 1, 1], torch.full((4,), 5.0), atol=0.01, rtol=0)
    torch.testing.assert_close(boxes[0, :, 0, 1], torch.full((4,), 3.0))


def test_wrong_boxes_cost_where_something_is_seen_alone() -> None:
    own = task()
    classes = torch.full((1, 3, 2, 2), -9.0)
    classes[0, 1, 0, 0] = 9.0
    target = pack([classes, torch.zeros(1, 4, 2, 2), torch.zeros(1, 2)])

    def cost(row: int) -> float:
        boxes = torch.zeros(1, 4, 2, 2)
        boxes[:, :, row, row] = 1.0
        return float(own.divergence(pack([classes, boxes, torch.zeros(1, 2)]), target, 1.0))

    assert cost(0) > 100 * cost(1)
    with pytest.raises(RecipeError, match="give one tensor"):
        Detection.of([torch.zeros(2, 3)])
