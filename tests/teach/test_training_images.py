"""Images that judge a training are none that the network was fitted to before."""

from __future__ import annotations

import pytest
import torch
from digits_parents import small_parents
from torch import Tensor
from torch.utils.data import TensorDataset

from depfuse import Recipe, fuse
from depfuse.data import Loader, Split, calibration_loader, load_data
from depfuse.data.contents import are_among
from depfuse.data.inputs import Ragged
from depfuse.teach.distil import Distillation
from depfuse.teach.training_images import apart_from_judges, hold_out

DATA = load_data("digits")
IMAGES = DATA.example(96)
RECIPE = Recipe(refit="ridge", refit_steps=0, distil=1)


def common(one: Tensor, other: Tensor) -> int:
    """Count the images of one that are among others."""
    return sum(any(torch.equal(image, another) for another in other) for image in one)


@pytest.mark.filterwarnings("ignore:the child came no nearer", "ignore:the training data are no images")
@pytest.mark.parametrize("given", [IMAGES, IMAGES.clone(), TensorDataset(IMAGES)], ids=["object", "copy", "data set"])
def test_images_given_for_both_are_calibrated_on_but_for_those_that_judge(given):
    training = Distillation(IMAGES)
    fitted = fuse(small_parents(), RECIPE, given, training=training).calibration.images
    judged = hold_out(training.read(small_parents()[0]).data, "cpu", RECIPE.seed)[1].images
    assert (len(fitted), len(judged), common(judged, fitted), common(judged, IMAGES)) == (90, 6, 0, 6)


def test_calibration_loses_the_judges_alone_and_keeps_its_order():
    judges = hold_out(DATA, "cpu", 0)[1]
    whole = calibration_loader(DATA, 5000)
    assert torch.equal(apart_from_judges(whole, DATA, 0).images, whole.images[: -judges.count])
    few = calibration_loader(DATA, 200)
    assert apart_from_judges(few, DATA, 0) is few
    assert apart_from_judges(judges, DATA, 0) is judges  # nothing else is left


def test_samples_of_several_shapes_and_parts_are_told_by_what_they_hold():
    def loader(*lengths: int) -> Loader:
        parts = [{"ids": torch.arange(3 * n).reshape(3, n), "mask": torch.ones(3, n) > 0} for n in lengths]
        return Loader(Split(Ragged(parts), None, call=lambda model, batch: model(**batch)), batch_size=2)

    assert are_among(loader(4, 5), loader(5, 6)).tolist() == [False] * 3 + [True] * 3


def test_a_loader_of_some_samples_is_augmented_and_shuffled_as_before():
    loader = calibration_loader(DATA, 8)
    loader.shuffle, loader.seed = True, 3
    some = loader.taking(torch.tensor([6, 1, 2]))
    assert torch.equal(some.images, loader.images[[6, 1, 2]])
    assert (some.shuffle, some.seed) == (True, 3)
    assert torch.equal(some.required_labels, loader.required_labels[[6, 1, 2]])
