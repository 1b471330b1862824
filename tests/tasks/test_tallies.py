"""Scores of every task against torchmetrics and scikit-learn, contributions of images, and labels that are refused."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor
from torchmetrics.functional import classification, image, regression

from depfuse.errors import DataError
from depfuse.evaluate import difference, standard_error, trivial
from depfuse.tasks.classes import Classes, Dense
from depfuse.tasks.features import Features
from depfuse.tasks.labels import Binary, Labels
from depfuse.tasks.regression import Regression
from depfuse.tasks.scores import (
    ACCURACY,
    AUROC,
    COSINE,
    DICE,
    IOU,
    PIXEL_ACCURACY,
    PRECISION,
    PSNR,
    R2,
    RECALL,
    RMSE,
    SSIM,
    Measure,
    Scores,
)
from depfuse.tasks.task import Task

SEEDS = st.integers(0, 2**31)


def scored(task: Task, outputs: Tensor, labels: Tensor, size: int = 7) -> Scores:
    """Scores of outputs that come in batches."""
    tally = task.tally()
    for own, wanted in zip(outputs.split(size), labels.split(size), strict=True):
        tally.add(own, wanted)
    return tally.scores()


def check_contributions(scores: Scores) -> None:
    """What images contribute has the score as its mean."""
    assert scores.of_images is not None
    assert scores.of_images.shape == (scores.count,)
    assert float(scores.of_images.double().mean()) == pytest.approx(scores.value, abs=2e-5)


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(seed=SEEDS, places=st.sampled_from([(5,), (4, 3), (2, 3, 2)]))
@settings(max_examples=20, deadline=None)
def test_maps_are_scored_as_torchmetrics_scores_them(seed: int, places: tuple[int, ...]) -> None:
    generator = drawn(seed)
    outputs = torch.randn(16, 4, *places, generator=generator)
    labels = torch.randint(0, 3, (16, *places), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = -100
    scores = scored(Dense(), outputs, labels)
    options = {"num_classes": 4, "ignore_index": -100}
    assert scores.measure == IOU
    assert scores.value == pytest.approx(float(classification.multiclass_jaccard_index(outputs, labels, **options)))
    predicted = outputs.argmax(1)
    dice = classification.multiclass_f1_score(predicted, labels, average="macro", **options)
    assert scores.by(DICE) == pytest.approx(float(dice), abs=1e-6)
    kept = labels != -100
    assert scores.by(PIXEL_ACCURACY) == pytest.approx(float((predicted == labels)[kept].float().mean()))
    wanted = torch.nn.functional.cross_entropy(outputs, labels, ignore_index=-100)
    assert scores.loss == pytest.approx(float(wanted), rel=1e-5)
    check_contributions(scores)


@given(seed=SEEDS)
@settings(max_examples=20, deadline=None)
def test_labels_are_scored_as_scikit_learn_scores_them(seed: int) -> None:
    generator = drawn(seed)
    labels = torch.randint(0, 2, (40, 5), generator=generator)
    labels[0], labels[1] = 0, 1
    outputs = (torch.randn(40, 5, generator=generator) + labels).mul(4).round().div(4)  # with ties
    scores = scored(Labels(), outputs, labels.float())
    assert scores.measure == AUROC
    assert scores.value == pytest.approx(float(roc_auc_score(labels, outputs)), abs=1e-6)
    wanted = float(average_precision_score(labels, outputs))
    assert scores.by(PRECISION) == pytest.approx(wanted, abs=1e-6)
    check_contributions(scores)
    assert scored(Labels(), outputs, labels.bool()).value == scores.value


def test_the_error_of_an_area_is_what_resampling_gives() -> None:
    generator = drawn(3)
    labels = torch.rand(300, generator=generator) < 0.3
    outputs = torch.randn(300, generator=generator) + labels
    pair = torch.stack([outputs, outputs], 1)
    scores = scored(Labels(), pair, torch.stack([labels, labels], 1))
    index = torch.randint(0, 300, (400, 300), generator=generator)
    areas = [scored(Labels(), pair[rows], torch.stack([labels[rows]] * 2, 1), 300).value for rows in index]
    assert standard_error(scores) == pytest.approx(torch.tensor(areas).std().item(), rel=0.12)


@pytest.mark.parametrize("shape", [(), (1,)])
def test_one_logit_is_scored_by_accuracy(shape: tuple[int, ...]) -> None:
    outputs, labels = torch.tensor([-1.0, 2.0, 0.5, -3.0, 1.0]), torch.tensor([0, 1, 0, 0, 1])
    scores = scored(Binary(), outputs.reshape(-1, *shape), labels, 2)
    assert (scores.measure, scores.value, scores.trivial) == (ACCURACY, 0.8, 0.6)
    assert scores.by(AUROC) == 1.0
    assert scores.of_images is not None
    assert scores.of_images.tolist() == [True, True, False, True, True]


def test_maps_of_one_logit_are_scored_by_their_overlap() -> None:
    generator = drawn(0)
    labels = torch.randint(0, 2, (9, 1, 6, 6), generator=generator)
    outputs = torch.randn(9, 1, 6, 6, generator=generator) + labels
    scores = scored(Binary(), outputs, labels[:, 0])
    assert scores.value == pytest.approx(float(classification.binary_jaccard_index(outputs, labels)), abs=1e-6)
    assert scores.by(DICE) == pytest.approx(float(classification.binary_f1_score(outputs, labels)), abs=1e-6)
    assert scores.trivial == pytest.approx(float(labels.double().mean()))
    check_contributions(scores)


@given(seed=SEEDS, shape=st.sampled_from([(), (1,), (3,), (2, 5)]))
@settings(max_examples=20, deadline=None)
def test_numbers_are_scored_as_torchmetrics_scores_them(seed: int, shape: tuple[int, ...]) -> None:
    generator = drawn(seed)
    labels = torch.randn(30, *shape, generator=generator)
    outputs = labels + 0.5 * torch.randn(30, *shape, generator=generator)
    scores = scored(Regression(), outputs, labels)
    rows = [own.reshape(30, 1, 1) if own.dim() < 2 else own.reshape(30, own.shape[1], -1) for own in (outputs, labels)]
    rows = [own.movedim(1, -1).reshape(-1, own.shape[1]).squeeze(1) for own in rows]
    assert scores.measure == R2
    assert scores.value == pytest.approx(float(regression.r2_score(*rows)), abs=1e-4)
    assert scores.by(RMSE) == pytest.approx(float((outputs - labels).square().mean().sqrt()), rel=1e-5)
    check_contributions(scores)


def test_targets_far_from_zero_are_scored_exactly() -> None:
    labels = 1e4 + torch.arange(8.0)[:, None]
    scores = scored(Regression(), labels + 0.25, labels, 3)
    assert scores.value == pytest.approx(1 - 0.0625 / 5.25, abs=1e-9)


@pytest.mark.parametrize(("low", "width"), [(0.0, 1.0), (-1.0, 2.0), (0.0, 255.0)])
def test_pictures_are_scored_as_torchmetrics_scores_them(low: float, width: float) -> None:
    generator = drawn(1)
    labels = low + width * torch.rand(10, 3, 16, 16, generator=generator)
    outputs = labels + 0.1 * width * torch.randn(labels.shape, generator=generator)
    scores = scored(Regression(), outputs, labels)
    assert scores.measure == PSNR
    wanted = float(image.peak_signal_noise_ratio(outputs, labels, data_range=width))
    assert scores.value == pytest.approx(wanted, abs=1e-4)
    similarity = float(image.structural_similarity_index_measure(outputs, labels, data_range=width))
    assert scores.by(SSIM) == pytest.approx(similarity, abs=1e-5)
    check_contributions(scores)
    constant = scored(Regression(), labels.mean((0, 2, 3), keepdim=True).expand_as(labels), labels)
    assert constant.value == pytest.approx(scores.trivial, abs=1e-3)


def test_embeddings_find_their_class() -> None:
    outputs = torch.tensor([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [0.1, 3.0], [1.0, 0.9]])
    scores = scored(Features(), outputs, torch.tensor([0, 0, 1, 1, 1]), 2)
    assert scores.measure == RECALL
    assert scores.of_images is not None
    assert scores.of_images.tolist() == [True, True, True, True, False]
    assert scores.trivial == pytest.approx((2 * 1 + 3 * 2) / 20)
    assert math.isnan(scores.loss)


def test_embeddings_are_compared_with_embeddings() -> None:
    generator = drawn(2)
    outputs, labels = torch.randn(12, 4, generator=generator), torch.randn(12, 4, generator=generator)
    scores = scored(Features(), outputs, labels)
    assert scores.measure == COSINE
    wanted = float(torch.nn.functional.cosine_similarity(outputs, labels).mean())
    assert scores.value == pytest.approx(wanted, abs=1e-6)
    check_contributions(scores)


@pytest.mark.parametrize(
    ("task", "outputs", "labels"),
    [
        (Classes(), (4, 3), torch.zeros(4, 3)),
        (Classes(), (4, 3), torch.zeros(4, 5, 5, dtype=torch.int64)),
        (Dense(), (4, 3, 5, 5), torch.zeros(4, 4, 4, dtype=torch.int64)),
        (Labels(), (4, 3), torch.zeros(4)),
        (Labels(), (4, 3), torch.full((4, 3), 2)),
        (Regression(), (4, 3), torch.zeros(4)),
        (Features(), (4, 3), torch.zeros(4)),
    ],
)
def test_labels_of_another_shape_are_refused(task: Task, outputs: tuple[int, ...], labels: Tensor) -> None:
    with pytest.raises(DataError, match="give labels of that shape, or name the `task` that the networks are of"):
        task.tally().add(torch.zeros(outputs), labels)


@pytest.mark.parametrize("task", [Classes(), Dense(), Labels(), Regression(), Features()])
def test_of_no_image_nothing_is_known(task: Task) -> None:
    with pytest.raises(DataError, match="there is no image to evaluate on"):
        task.tally().scores()


def test_labels_of_places_without_an_output_are_refused() -> None:
    with pytest.raises(DataError, match="label 3, but the network has 3 outputs"):
        Dense().tally().add(torch.zeros(1, 3, 2), torch.tensor([[3, 0]]))


def test_networks_are_told_apart_by_what_images_contribute() -> None:
    generator = drawn(5)
    labels = torch.randn(200, 2, generator=generator)
    noise = torch.randn(200, 2, generator=generator)
    better, worse = (scored(Regression(), labels + size * noise, labels) for size in (0.30, 0.31))
    lead = difference(better, worse)
    assert lead.value == pytest.approx(better.value - worse.value)
    assert lead.certain, "the same images are harder for both"
    assert abs(lead.value) < 2 * standard_error(better)
    assert not trivial(better)
    assert trivial(scored(Regression(), torch.zeros(200, 2), labels))
    with pytest.raises(DataError, match="R2 on 200 images cannot be compared with accuracy on 200"):
        difference(better, Scores(0.5, 1.0, 200))


def test_measures_write_themselves() -> None:
    assert ACCURACY.text(0.98765) == "98.77 %"
    assert ACCURACY.amount(ACCURACY.distance(0.9, 0.8)) == "10.00 points"
    assert PSNR.text(35.4) == "35.40 dB"
    assert PSNR.amount(PSNR.distance(35.1, 35.4)) == "0.30 dB"
    assert R2.text(math.nan) == "not finite"
    assert Measure("own", "").title == "own"
    with pytest.raises(AttributeError, match="no mean IoU is known here: the scores are accuracy"):
        Scores(0.5, 1.0, 2).by(IOU)


def test_labels_fit_outputs_up_to_axes_of_one() -> None:
    whole, numbers = torch.randint(3, (20,)), torch.rand(20, 4, 4)
    rows = torch.randn(20, 3)
    assert scored(Classes(), rows, whole[:, None]) == scored(Classes(), rows, whole)
    of_places = scored(Dense(), rows[:, :, None, None], whole)
    assert of_places.by(PIXEL_ACCURACY) == pytest.approx(scored(Classes(), rows, whole).value)
    maps, places = torch.randn(20, 3, 4, 4), torch.randint(3, (20, 4, 4))
    assert scored(Dense(), maps, places[:, None]) == scored(Dense(), maps, places)
    assert scored(Regression(), maps[:, :1], numbers) == scored(Regression(), maps[:, :1], numbers[:, None])
    with pytest.raises(DataError, match="are scored by labels of places"):
        scored(Dense(), maps[:, :, :2], places[:, :, :2].reshape(20, 4, 2))


def test_places_of_label_255_are_no_class_where_there_are_fewer() -> None:
    maps, places = torch.randn(20, 3, 4, 4), torch.randint(3, (20, 4, 4))
    without = places.where(places > 0, torch.tensor(-100))
    assert scored(Dense(), maps, places.where(places > 0, torch.tensor(255)).to(torch.uint8)) == scored(
        Dense(), maps, without
    )
    many = scored(Dense(), torch.randn(4, 256, 2, 2), torch.full((4, 2, 2), 255))
    assert math.isfinite(many.loss), "class 255 counts"


def test_one_place_is_no_picture() -> None:
    outputs, targets = torch.rand(20, 1, 1, 1), torch.rand(20)
    assert scored(Regression(), outputs, targets).measure is R2
