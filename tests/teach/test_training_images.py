"""Images that judge a training are none that the network was fitted to before."""

from __future__ import annotations

import pytest
import torch
from digits_parents import small_parents
from torch import Tensor

from depfuse import Recipe, fuse
from depfuse.data import calibration_loader, load_data
from depfuse.teach.distil import Distillation
from depfuse.teach.training_images import hold_out

DATA = load_data("digits")
IMAGES = DATA.example(96)
RECIPE = Recipe(refit="ridge", refit_steps=0, distil=1)


def common(one: Tensor, other: Tensor) -> int:
    """Count the images of one that are among others."""
    return sum(any(torch.equal(image, another) for another in other) for image in one)


@pytest.mark.filterwarnings("ignore:the child came no nearer", "ignore:the training data are no images")
def test_images_given_for_both_are_calibrated_on_but_for_those_that_judge():
    training = Distillation(IMAGES)
    fitted = fuse(small_parents(), RECIPE, IMAGES, training=training).calibration.images
    judged = hold_out(training.read(small_parents()[0]).data, "cpu", RECIPE.seed)[1].images
    assert (len(fitted), len(judged), common(judged, fitted), common(judged, IMAGES)) == (90, 6, 0, 6)
    others = fuse(small_parents(), RECIPE, IMAGES.clone(), training=Distillation(IMAGES)).calibration
    assert others.count == 96  # nobody knows that they are the same


def test_calibration_spares_the_last_of_its_order():
    whole, spared = (calibration_loader(DATA, 5000, spare=spare).images for spare in (0, 81))
    assert torch.equal(spared, whole[: len(whole) - 81])
    assert torch.equal(calibration_loader(DATA, 200, spare=81).images, whole[:200])
