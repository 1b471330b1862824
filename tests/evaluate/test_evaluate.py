"""Scores against brute force, the barrier, the ensemble, and what evaluation must leave alone."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from depfuse.data import Loader, load_data
from depfuse.errors import DataError, RecipeError
from depfuse.evaluate import (
    Scores,
    barrier,
    evaluate,
    evaluate_ensemble,
    evaluate_path,
    evaluate_together,
    evaluate_with_ensemble,
    path_alphas,
)
from depfuse.io.checkpoint import read_checkpoint
from depfuse.io.into_network import load_into
from depfuse.models import build_network
from depfuse.tasks.scores import CALIBRATION


class Table(nn.Module):
    """A network whose outputs are its inputs."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def batches_of(inputs: Tensor, labels: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(inputs.split(size), labels.split(size), strict=True))


def brute_force(logits: Tensor, labels: Tensor) -> Scores:
    """The definitions, image by image, in double precision."""
    correct, loss = 0, 0.0
    bins: list[list[tuple[float, float]]] = [[] for _ in range(15)]
    for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
        top = max(row)
        normaliser = sum(math.exp(value - top) for value in row)
        probabilities = [math.exp(value - top) / normaliser for value in row]
        confidence = max(probabilities)
        hit = row.index(top) == label
        correct += hit
        loss -= row[label] - top - math.log(normaliser)
        place = next(b for b in range(15) if confidence <= (b + 1) / 15 + 1e-6)
        bins[place].append((confidence, float(hit)))
    gap = sum(abs(sum(c for c, _ in pairs) - sum(h for _, h in pairs)) for pairs in bins)
    count = len(labels)
    return Scores(correct / count, loss / count, count, further={CALIBRATION: gap / count})


def assert_close(found: Scores, wanted: Scores) -> None:
    assert found.count == wanted.count
    assert found.accuracy == wanted.accuracy
    assert found.loss == pytest.approx(wanted.loss, abs=1e-5)
    assert found.calibration_error == pytest.approx(wanted.calibration_error, abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 60),
    classes=st.integers(2, 12),
    batch=st.integers(1, 17),
    scale=st.sampled_from([0.0, 0.3, 3.0, 30.0]),
)
def test_scores_equal_the_definitions(seed: int, count: int, classes: int, batch: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(count, classes, generator=generator)
    labels = torch.randint(classes, (count,), generator=generator)
    assert_close(evaluate(Table(), batches_of(logits, labels, batch)), brute_force(logits, labels))


def test_ensemble_is_the_weighted_mean_of_logits() -> None:
    torch.manual_seed(0)
    models = [nn.Linear(5, 4) for _ in range(3)]
    inputs, labels = torch.randn(50, 5), torch.randint(4, (50,))
    batches = batches_of(inputs, labels, 16)
    shares = (0.5, 0.2, 0.3)
    with torch.no_grad():
        mean = sum(share * model(inputs) for share, model in zip(shares, models, strict=True))
    assert_close(evaluate_ensemble(models, batches, shares), brute_force(mean, labels))
    members, ensemble = evaluate_with_ensemble(models, batches)
    assert members == evaluate_together(models, batches) == [evaluate(model, batches) for model in models]
    assert ensemble == evaluate_ensemble(models, batches, [1 / 3] * 3)


def test_one_pass_reads_the_data_once() -> None:
    class Counted:
        passes = 0

        def __iter__(self):
            self.passes += 1
            yield torch.randn(8, 5), torch.randint(4, (8,))

    batches = Counted()
    evaluate_with_ensemble([nn.Linear(5, 4) for _ in range(3)], batches)
    assert batches.passes == 1


def test_evaluation_leaves_the_network_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(144, 3))
    model.train()
    model[2].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, [(torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0]))])
    assert model.training
    assert model[1].training
    assert not model[2].training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_mode_is_restored_after_an_error() -> None:
    model = nn.Linear(5, 4).train()
    with pytest.raises(DataError, match="do not fit"):
        evaluate(model, [(torch.randn(2, 7), torch.tensor([0, 1]))])
    assert model.training
    assert torch.is_grad_enabled()


def test_network_that_flattens_with_view_is_evaluated() -> None:
    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.convolution(x).view(x.shape[0], -1)

    model = Viewing()
    inputs, labels = torch.randn(6, 3, 5, 5), torch.randint(36, (6,))
    with torch.no_grad():
        logits = model(inputs)
    assert_close(evaluate(model, [(inputs, labels)]), brute_force(logits, labels))


@pytest.mark.parametrize("label", [4, 9, -1])
def test_label_without_an_output_is_refused(label: int) -> None:
    with pytest.raises(DataError, match=f"label {label}, but the network has 4 outputs"):
        evaluate(nn.Linear(5, 4), [(torch.randn(3, 5), torch.tensor([0, label, 1]))])


def test_no_image_is_refused() -> None:
    with pytest.raises(DataError, match="no image"):
        evaluate(nn.Linear(5, 4), [])


def test_network_that_returns_no_logits_is_refused() -> None:
    with pytest.raises(DataError, match=r"gives \(1, 4, 2, 2\) for one image, and class scores are"):
        evaluate(nn.Conv2d(1, 4, 3), [(torch.randn(3, 1, 4, 4), torch.tensor([0, 1, 2]))])


def test_ensemble_needs_one_weight_per_network_and_equal_outputs() -> None:
    batches = [(torch.randn(3, 5), torch.tensor([0, 1, 2]))]
    with pytest.raises(RecipeError, match="3 weights for an ensemble of 2"):
        evaluate_ensemble([nn.Linear(5, 4), nn.Linear(5, 4)], batches, (0.2, 0.2, 0.6))
    with pytest.raises(DataError, match=r"outputs of shapes \[\(3,\), \(4,\)\] cannot be combined"):
        evaluate_ensemble([nn.Linear(5, 4), nn.Linear(5, 3)], batches)


@given(losses=st.lists(st.floats(0, 10), min_size=2, max_size=12))
def test_barrier_equals_the_definition(losses: list[float]) -> None:
    alphas = path_alphas(len(losses))
    highest = 0.0
    for alpha, loss in zip(alphas, losses, strict=True):
        line = losses[0] + alpha * (losses[-1] - losses[0])
        highest = max(highest, loss - line)
    assert barrier(alphas, losses) == pytest.approx(highest, abs=1e-9)
    assert barrier(alphas, losses) >= 0.0


def test_barrier_of_a_line_and_of_a_bump() -> None:
    assert barrier([0.0, 0.5, 1.0], [1.0, 2.0, 3.0]) == pytest.approx(0.0)
    assert barrier([0.0, 0.25, 1.0], [1.0, 5.0, 3.0]) == pytest.approx(3.5)


def test_path_starts_and_ends_at_the_parents() -> None:
    first, second = Scores(0.9, 0.1, 4), Scores(0.8, 0.2, 4)
    batches = [(torch.eye(4), torch.arange(4))]
    asked: list[float] = []

    def network_at(alpha: float) -> nn.Module:
        asked.append(alpha)
        return Table()

    done: list[float] = []
    points = evaluate_path((first, second), network_at, batches, path_alphas(5), done.append)
    assert [point.alpha for point in points] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert points[0].scores is first
    assert points[-1].scores is second
    assert asked == done == [0.25, 0.5, 0.75]
    assert points[2].scores.accuracy == 1.0


@pytest.mark.parametrize("points", [0, 1])
def test_path_of_one_point_is_refused(points: int) -> None:
    with pytest.raises(RecipeError, match="at least 2"):
        path_alphas(points)


def test_path_that_does_not_run_from_end_to_end_is_refused() -> None:
    ends = (Scores(1, 0, 1), Scores(1, 0, 1))
    with pytest.raises(RecipeError, match="from 0 to 1"):
        evaluate_path(ends, lambda alpha: Table(), [], [0.0, 0.5])


@pytest.mark.slow
def test_published_accuracies_are_met_to_the_image(shared: Path) -> None:
    data = load_data(shared / "data" / "mnist.npz")
    models = []
    for number in (1, 2):
        models.append(build_network(f"{shared / 'models' / 'simplenet.py'}:simplenet"))
        file = shared / "checkpoints" / "mnist-simplenet" / f"example_model_fusion_{number}.dat"
        load_into(models[-1], read_checkpoint(file))
    scores = evaluate_together(models, Loader(data.test, data.preprocessing, batch_size=250))
    assert [round(10_000 * score.accuracy) for score in scores] == [8418, 8381]
