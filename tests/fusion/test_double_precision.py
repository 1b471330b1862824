"""Networks in double precision are fused, refitted and taught in it."""

from __future__ import annotations

import pytest
import torch
from digits_parents import small_parents

from depfuse import Recipe, fuse
from depfuse.data import load_data
from depfuse.data.floats import to_floats
from depfuse.teach.distil import Distillation

DATA = load_data("digits")
IMAGES = to_floats(DATA.train.held().images[:200], DATA.preprocessing)
RECIPES = {
    "steps": Recipe(refit_steps=3),
    "distilled": Recipe(refit="ridge", refit_steps=0, distil=1),
    "by recall": Recipe(refit="ridge", refit_steps=0, renorm="none"),
}


@pytest.mark.filterwarnings("ignore:the child came no nearer", "ignore:the training data are no images")
@pytest.mark.parametrize("name", RECIPES)
def test_children_of_double_precision_are_those_of_single(name: str) -> None:
    classes = []
    for kind in (torch.float32, torch.float64):
        images = IMAGES.to(kind)
        training = Distillation(images) if name == "distilled" else None
        child = fuse([parent.to(kind) for parent in small_parents()], RECIPES[name], images, training=training).child
        assert {parameter.dtype for parameter in child.parameters()} == {kind}
        with torch.no_grad():
            classes.append(child(images).argmax(1))
    assert float((classes[0] == classes[1]).float().mean()) > 0.97
