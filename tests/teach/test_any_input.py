"""Training a child on inputs that are no pictures, and on labels that are no classes."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

from depfuse import Recipe, fuse
from depfuse.data import DataSet, Loader, Preprocessing, Split
from depfuse.data.inputs import Ragged
from depfuse.ensemble.ensemble import Ensemble
from depfuse.errors import DataError, DepfuseWarning, RecipeError
from depfuse.tasks.classes import Classes, Dense
from depfuse.tasks.features import Features
from depfuse.tasks.label_kinds import labels_for
from depfuse.tasks.labels import Binary, Labels
from depfuse.tasks.regression import Regression
from depfuse.teach.distil import Distillation

COUNT = 120
IMAGES = torch.rand(COUNT, 1, 8, 8, generator=torch.Generator().manual_seed(0))
BRIGHTNESS = torch.randn(COUNT, generator=torch.Generator().manual_seed(1))
LIT = IMAGES + BRIGHTNESS[:, None, None, None]


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.image = nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.row, self.head = nn.Sequential(nn.Linear(5, 6), nn.ReLU()), nn.Linear(12, 3)

    def forward(self, image, row):
        return self.head(torch.cat([self.image(image), self.row(row)], 1))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.layer = nn.Embedding(20, 8), nn.Linear(8, 12)
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 3)

    def forward(self, input_ids):
        return self.head(self.norm(self.layer(self.embedding(input_ids)).relu()).mean(1))


def signals():
    return nn.Sequential(
        nn.Conv1d(1, 6, 5), nn.BatchNorm1d(6), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(6, 3)
    )


def volumes():
    return nn.Sequential(
        nn.Conv3d(1, 6, 3), nn.BatchNorm3d(6), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(6, 3)
    )


def pictures(outputs=3, *, maps=False):
    body = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
    if maps:
        return nn.Sequential(*body, nn.Conv2d(8, outputs, 1))
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, outputs))


INPUTS = {
    "signals": (signals, torch.randn(COUNT, 1, 24, generator=torch.Generator().manual_seed(0)), None),
    "volumes": (volumes, torch.randn(COUNT, 1, 5, 5, 5, generator=torch.Generator().manual_seed(0)), None),
    "two inputs": (
        TwoInputs,
        (
            torch.randn(COUNT, 1, 6, 6, generator=torch.Generator().manual_seed(0)),
            torch.randn(COUNT, 5, generator=torch.Generator().manual_seed(1)),
        ),
        None,
    ),
    "tokens": (Tokens, torch.randint(0, 20, (COUNT, 7), generator=torch.Generator().manual_seed(0)), None),
    "called": (
        signals,
        {"signal": torch.randn(COUNT, 1, 24, generator=torch.Generator().manual_seed(0))},
        lambda model, batch: model(batch["signal"]),
    ),
    "sentences": (Tokens, [torch.randint(0, 20, (40, 5 + part)) for part in range(3)], None),
}


def two(make):
    torch.manual_seed(0)
    return [make().eval(), make().eval()]


def moved(before, after):
    return any(not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))


@pytest.mark.parametrize("name", INPUTS)
def test_a_child_is_distilled_whatever_its_inputs_are(name):
    make, inputs, call = INPUTS[name]
    parents = two(make)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DepfuseWarning)
        merged = fuse(parents, "fast", inputs, call=call)
    recipe = Recipe.create(preset="fast", **{"train.distil": 20, "train.learning_rate": 0.01})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DepfuseWarning)
        result = fuse(parents, recipe, inputs, call=call, training=Distillation(inputs))
    said = "are no images, as far as is known, and are learned as they are"
    as_they_are = [said in str(one.message) for one in caught]
    assert any(as_they_are) is (name != "volumes")  # which are shifted
    images = merged.calibration
    assert result.ensemble.divergence(result.child, images) < result.ensemble.divergence(merged.child, images)
    assert moved(merged.child, result.child)


def test_samples_of_several_shapes_are_shuffled_into_batches_of_one():
    sentences = Ragged([torch.full((number, length), length) for number, length in ((7, 3), (4, 5), (6, 3))])
    loader = Loader(Split(sentences), batch_size=4, shuffle=True)
    seen = [batch for batch, _ in loader]
    assert len(seen) == len(loader) == 5
    assert sorted(len(batch) for batch in seen) == [3, 3, 3, 4, 4]
    assert all(int(batch.unique()) == batch.shape[1] for batch in seen)
    whole = Loader(Split(sentences), batch_size=4, shuffle=True, drop_last=True)
    assert [len(batch) for batch, _ in whole] == [4] * len(whole) == [4] * 4


@pytest.mark.parametrize(
    ("task", "parents", "labels", "loss"),
    [
        (
            "multilabel",
            lambda: pictures(4),
            (BRIGHTNESS[:, None] > torch.tensor([-1.0, -0.5, 0.5, 1.0])).float(),
            "average precision",
        ),
        ("binary", lambda: pictures(1), (BRIGHTNESS > 0).long(), "accuracy"),
        ("regression", lambda: pictures(2), torch.stack([BRIGHTNESS, -BRIGHTNESS], 1), "RMSE"),
        ("dense", lambda: pictures(3, maps=True), (LIT[:, 0] + 1).clamp(0, 2.99).long(), "mean IoU"),
        ("binary", lambda: pictures(1, maps=True), (LIT > 0.5).long(), "mean IoU"),
    ],
)
def test_a_child_learns_labels_of_every_task(task, parents, labels, loss):
    recipe = Recipe.create(preset="fast", **{"train.finetune": 30, "train.learning_rate": 0.02})
    result = fuse(two(parents), recipe, LIT, task=task, training=Distillation((LIT, labels)))
    merged = fuse(two(parents), "fast", LIT, task=task)
    after, before = (own.comparison(LIT, labels).child for own in (result, merged))
    assert after.loss < before.loss
    assert loss in [measure.name for measure in (after.measure, *after.further)]


def test_maps_and_numbers_are_learned_from_images_as_they_are():
    """A mask of a shifted image would be another one."""
    images = torch.rand(COUNT, 3, 8, 8)
    for labels, flipped in ((torch.randint(0, 3, (COUNT, 8, 8)), False), (torch.randint(0, 3, (COUNT,)), True)):
        seen = []
        network = pictures(3, maps=labels.dim() > 1)
        network[0] = nn.Conv2d(3, 8, 3, padding=1)
        network[0].register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]))
        data = DataSet("drawn", (), Split(images, labels), None, Preprocessing())
        task = Dense() if labels.dim() > 1 else Classes()
        recipe = Recipe.create({"train.finetune": 1}).train
        teacher = Ensemble([copy.deepcopy(network)], (1.0,), task=task)
        Distillation(data).train(network, teacher, recipe, seed=0, name="child", origin="")
        trained = torch.cat([batch for batch in seen if len(batch) > 2]).flatten(1)
        nearest = torch.cdist(trained, images.flatten(1)).min(1).values
        assert bool((nearest > 0.1).any()) is flipped  # distances are rounded


@pytest.mark.parametrize(
    ("task", "outputs", "labels", "sentence"),
    [
        (Classes(), (3,), torch.tensor([0, 1, 3, 2]), r"the data have the label 3, but the network has 3 outputs"),
        (Classes(), (3,), torch.rand(4), "labels of images, whole numbers"),
        (Classes(), (3,), torch.randint(0, 2, (4, 3)), "labels of images, whole numbers"),
        (Dense(), (3, 8, 8), torch.randint(0, 3, (4, 4, 4)), "labels of places, whole numbers"),
        (Dense(), (3, 8, 8), torch.full((4, 8, 8), 7), "the data have the label 7"),
        (Dense(), (3, 8, 8), torch.rand(4, 8, 8), "labels of places, whole numbers"),
        (Labels(), (3,), torch.tensor([[0, 1, 2]] * 4), "labels 0 and 1"),
        (Labels(), (3,), torch.zeros(4, 2), "labels 0 and 1"),
        (Binary(), (1,), torch.tensor([0, 1, 2, 1]), "labels 0 and 1"),
        (Regression(), (2,), torch.zeros(4, 3), "targets of the same shape"),
        (Regression(), (2,), torch.tensor([[1.0, 2.0], [float("nan"), 1.0]]), "sample 1 are not finite"),
        (Features(), (5,), torch.zeros(4, 4), "classes .* of embeddings"),
    ],
)
def test_labels_that_do_not_fit_are_refused(task, outputs, labels, sentence):
    with pytest.raises(DataError, match=sentence):
        labels_for(task, labels, torch.zeros(2, *outputs))


@pytest.mark.parametrize(
    ("labels", "settings", "sentence"),
    [
        (torch.full((COUNT,), 7), {}, "the data have the label 7, but the network has 3 outputs"),
        (None, {}, "the training data have none"),
        (torch.tensor([-1] + [0] * (COUNT - 1)), {}, f"1 of {COUNT} have none"),
        (torch.zeros(COUNT, dtype=torch.int64), {"task": "features"}, "learn from embeddings alone"),
        (torch.zeros(COUNT, 2), {"task": "regression"}, "targets of the same shape"),
    ],
)
def test_labels_are_looked_at_before_anything_is_computed(labels, settings, sentence):
    """Nor are groups looked for."""
    begun = []
    images = torch.rand(COUNT, 1, 8, 8)
    training = Distillation(images if labels is None else (images, labels))
    recipe = Recipe.create(preset="fast", **{"train.finetune": 1}, **settings)
    with pytest.raises(DataError, match=sentence):
        fuse(two(pictures), recipe, images, training=training, progress=begun.append)
    assert "groups" not in begun


def test_what_has_no_classes_is_not_trained_on_its_own_labels():
    images = torch.rand(COUNT, 1, 8, 8)
    recipe = Recipe.create(preset="fast", **{"train.self_training": 2})
    with pytest.raises(RecipeError, match="learns classes of images"):
        fuse(two(pictures), recipe, images, training=Distillation(images), task="regression")
