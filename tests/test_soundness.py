"""What no parent and no child may be."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from depfuse import Recipe, fuse
from depfuse.data import Loader, Preprocessing, Split
from depfuse.errors import RecipeError
from depfuse.models import build_network


def images(count: int = 40) -> Loader:
    pixels = torch.randint(256, (count, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return Loader(Split(pixels, torch.zeros(count, dtype=torch.int64)), Preprocessing(), batch_size=20)


def parents(arch: str = "digits_resnet(width=0.25)") -> list[nn.Module]:
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        found.append(build_network(arch).eval())
    return found


@pytest.mark.parametrize("renorm", ["none", "data-free", "reset"])
def test_negative_variances_are_refused_by_parent_and_key(renorm):
    models = parents()
    models[1].bn1.running_var[1] = -1e-3
    with pytest.raises(RecipeError, match=r"parent 2 has negative variances in bn1\.running_var \(1 of 4\)"):
        fuse(models, Recipe(criterion="weights", refit="none", renorm=renorm), calibration=images())
