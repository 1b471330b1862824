"""Every task: its divergence has the derivatives that steps follow, its losses are least where they should be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depfuse import Recipe, fuse
from depfuse.data import Loader, Split
from depfuse.ensemble.targets import TEMPERATURE
from depfuse.errors import RecipeError
from depfuse.recipe.tasks import TASKS
from depfuse.tasks.choose import choose_task
from depfuse.tasks.task import Task

SHAPES = {
    "classes": [(3, 5)],
    "dense": [(3, 4, 2, 3), (2, 3, 5), (2, 3, 2, 2, 2)],
    "multilabel": [(3, 6), (2, 3, 2, 2)],
    "binary": [(3, 1), (3,), (2, 1, 3, 3)],
    "regression": [(3, 4), (3, 1), (3,), (2, 3, 2, 2)],
    "features": [(3, 6), (2, 4, 3)],
}
CASES = [(name, shape) for name, shapes in SHAPES.items() for shape in shapes]


def task_of(name: str, shape: tuple[int, ...], seed: int = 0) -> tuple[Task, Tensor, Tensor]:
    """A task, and two outputs of its shape in float64."""
    generator = torch.Generator().manual_seed(seed)
    first, second = (2 * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    task = choose_task(TASKS(name), first, lambda: [first, second]).task
    assert task is not None
    assert task.name == name
    return task, first, second


@pytest.mark.parametrize(("name", "shape"), CASES)
@pytest.mark.parametrize("temperature", [1.0, TEMPERATURE])
def test_the_slope_is_the_gradient_of_the_divergence(name: str, shape: tuple[int, ...], temperature: float) -> None:
    task, outputs, other = task_of(name, shape)
    target = task.ensemble_target([other], (1.0,), temperature)
    leaf = outputs.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(task.divergence(leaf, target, temperature), leaf)
    torch.testing.assert_close(task.slope(outputs, target, temperature), gradient)
    assert float(task.divergence(other, target, temperature)) == pytest.approx(0.0, abs=1e-6)
    assert float(task.divergence(outputs, target, temperature)) > 1e-3


@pytest.mark.parametrize("name", ["dense", "multilabel"])
def test_maps_are_not_softened_and_rows_are(name: str) -> None:
    for shape, softened in (((2, 3, 4, 5), False), ((2, 3), True)):
        task, outputs, other = task_of(name if not softened or name != "dense" else "classes", shape)
        for found in (
            lambda temperature, task=task, z=outputs, t=other: task.ensemble_target([z, t], (0.4, 0.6), temperature),
            lambda temperature, task=task, z=outputs, t=other: task.divergence(z, t, temperature),
            lambda temperature, task=task, z=outputs, t=other: task.slope(z, t, temperature),
            lambda temperature, task=task, z=outputs, t=other: task.curvature_product(t, z, temperature),
            lambda temperature, task=task, z=outputs: task.sample(z, torch.Generator().manual_seed(0), temperature),
        ):
            assert torch.equal(found(1.0), found(TEMPERATURE)) is not softened


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_the_curvature_is_that_of_the_divergence_at_its_minimum(name: str, shape: tuple[int, ...]) -> None:
    task, outputs, change = task_of(name, shape)
    target = task.ensemble_target([outputs], (1.0,), 2.0)
    _, wanted = torch.autograd.functional.hvp(lambda z: task.divergence(z, target, 2.0), outputs, change)
    torch.testing.assert_close(task.curvature_product(change, outputs, 2.0), wanted, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_samples_and_factors_have_the_curvature_as_covariance(name: str, shape: tuple[int, ...]) -> None:
    task, outputs, _ = task_of(name, (1, *shape[1:]))
    size = outputs.numel()
    basis = torch.eye(size, dtype=torch.float64).reshape(size, *shape[1:])
    wanted = torch.stack([task.curvature_product(row[None], outputs, 1.0).flatten() for row in basis])
    samples = task.sample(outputs.expand(60_000, *shape[1:]), torch.Generator().manual_seed(1), 1.0).reshape(60_000, -1)
    torch.testing.assert_close(samples.T @ samples / 60_000, wanted, atol=0.02 * float(wanted.diagonal().max()), rtol=0)
    factor = task.factor(outputs[0], torch.eye(size, dtype=torch.float64))
    share = 1.0 if name != "regression" else 1.0 / size  # numbers count as of unit variance there
    torch.testing.assert_close(share * factor.T @ factor, wanted)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_losses_are_least_at_the_prediction_itself(name: str, shape: tuple[int, ...]) -> None:
    task, outputs, other = task_of(name, shape)
    target = task.mean([outputs], (1.0,))
    torch.testing.assert_close(target, task.predictions(outputs))
    own, others = task.losses(outputs, target), task.losses(other, target)
    assert own.shape == others.shape == (len(outputs),)
    assert bool((own < others).all())
    agreements = task.agreements(outputs, target)
    assert float(agreements) == len(outputs) if task.predicts else bool(agreements.isnan())


def test_a_map_counts_as_its_mean_place_and_labels_as_their_sum() -> None:
    rows, other = torch.randn(2, 4, 3, dtype=torch.float64)
    one, _, _ = task_of("classes", (4, 3))
    dense, _, _ = task_of("dense", (4, 3, 5))
    wanted = one.divergence(rows, other, 1.0)
    repeated = [part[..., None].expand(4, 3, 5) for part in (rows, other)]
    torch.testing.assert_close(dense.divergence(*repeated, 1.0), wanted)
    torch.testing.assert_close(wanted, F.kl_div(rows.log_softmax(1), other.softmax(1), reduction="sum"))
    labels, _, _ = task_of("multilabel", (4, 3))
    pairs = [torch.stack([part, torch.zeros_like(part)], 1) for part in (rows, other)]  # one logit is two scores
    torch.testing.assert_close(
        labels.divergence(rows, other, 1.0),
        F.kl_div(pairs[0].log_softmax(1), pairs[1].softmax(1), reduction="sum"),
    )


def test_a_number_counts_in_units_of_its_spread() -> None:
    outputs = torch.randn(50, 2, dtype=torch.float64) * torch.tensor([1.0, 1000.0])
    task = choose_task(TASKS("regression"), outputs[:1], lambda: [outputs, outputs]).task
    assert task is not None
    wrong = [outputs + torch.tensor(shift) * outputs.std(0, correction=0) for shift in ([1.0, 0.0], [0.0, 1.0])]
    first, second = (float(task.losses(one, outputs).mean()) for one in wrong)
    assert first == pytest.approx(second, rel=1e-9)
    assert first == pytest.approx(0.5, rel=1e-9)


@pytest.mark.parametrize(
    ("shape", "name"),
    [
        ((6, 3), "classes"),
        ((6, 1), "regression"),
        ((6,), "regression"),
        ((6, 3, 4, 4), "dense"),
        ((6, 1, 4, 4), "regression"),
    ],
)
def test_without_evidence_the_shape_decides_and_that_is_said(shape: tuple[int, ...], name: str) -> None:
    chosen = choose_task(TASKS("auto"), torch.randn(shape))
    assert chosen.task is not None
    assert chosen.task.name == name
    assert "assumed" in chosen.because


class Gives(nn.Module):
    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.conv(x))).mean((2, 3)))


def images() -> Loader:
    return Loader(Split(torch.randn(200, 1, 5, 5, generator=torch.Generator().manual_seed(0))), batch_size=50)


@pytest.mark.parametrize("name", ["multilabel", "regression", "features"])
def test_the_users_task_is_that_of_the_result(name: str) -> None:
    torch.manual_seed(0)
    parents = [Gives(4).eval() for _ in range(2)]
    result = fuse(parents, Recipe(refit={"name": "ridge", "steps": 8}), images(), task=name)
    assert result.recipe.task.name == name
    assert result.meaning.task is not None
    assert result.meaning.task.name == name
    assert f"{name}: what the outputs mean" in repr(result)
    again = fuse(parents, result.recipe, images())
    for key, tensor in again.child.state_dict().items():
        assert torch.equal(tensor, result.child.state_dict()[key])


@pytest.mark.parametrize(
    ("task", "given", "sentence"),
    [
        ("dense", {}, r"`task=dense` is of outputs \(N, C, ...\)"),
        ("binary", {}, r"`task=binary` is of outputs \(N,\) or \(N, 1"),
        ("none", {"refit": "ridge"}, "task none knows nothing of outputs"),
        ("colours", {}, "colours"),
    ],
)
def test_a_task_that_does_not_fit_is_one_sentence(task: str, given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        fuse([Gives(4).eval() for _ in range(2)], Recipe(**given), images(), task=task)


def test_without_a_task_parents_are_matched_and_merged() -> None:
    result = fuse([Gives(4).eval() for _ in range(2)], None, images(), task="none")
    assert result.recipe.refit.name == "none"
    assert "task none" in result.refit_reason
