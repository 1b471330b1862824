"""Statistics from calibration images that are flipped and shifted."""

from __future__ import annotations

import pytest
import torch

from depfuse import Recipe, fuse
from depfuse.data import Augmentation, Loader, Preprocessing, Split
from depfuse.models import build_network
from depfuse.renorm import reset_batch_norm

ARCHITECTURE = "digits_resnet(width=0.5, in_channels=3)"


def images(count: int = 60) -> Loader:
    pixels = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return Loader(Split(pixels, torch.arange(count)), Preprocessing(), batch_size=20)


def whole(loader: Loader) -> tuple[torch.Tensor, torch.Tensor]:
    batches = list(loader)
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def test_the_same_images_in_the_same_order_each_changed_once():
    loader, augment = images(), Augmentation(flip=True, translate=1)
    plain, labels = whole(loader)
    changed, kept = whole(loader.augmented(augment, 3))
    again, _ = whole(loader.augmented(augment, 3))
    other, _ = whole(loader.augmented(augment, 4))
    assert torch.equal(labels, kept)
    assert torch.equal(changed, again)
    assert not torch.equal(changed, other)
    assert not torch.equal(changed, plain)
    one = loader.augmented(augment, 3)
    assert torch.equal(whole(one)[0], whole(one)[0])
    places = [torch.roll(p, shifts, (2, 3)) for p in (plain, plain.flip(3)) for shifts in _shifts()]
    inner = torch.stack([(place - changed)[:, :, 1:-1, 1:-1].abs().amax((1, 2, 3)) for place in places])
    assert bool((inner.min(0).values == 0).all())
    for (few, _), (many, _) in zip(loader.augmented(augment), loader, strict=True):
        assert few.shape == many.shape


def _shifts() -> list[tuple[int, int]]:
    return [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]


@pytest.fixture
def parents() -> list[torch.nn.Module]:
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        found.append(build_network(ARCHITECTURE).eval())
        reset_batch_norm(found[-1], images())
    return found


@pytest.mark.parametrize("renorm", ["auto", "reset", "repair", "rescale"])
def test_the_child_has_their_statistics(parents, renorm):
    recipe = Recipe(refit="none", criterion="weights", restarts=1, renorm=renorm, seed=5)
    augmented = recipe.changed({"calibration.augment": True, "calibration.mirror": True})
    children = [fuse(parents, own, images()).child.state_dict() for own in (recipe, augmented, augmented)]
    key = "layer1.bn1.running_mean"
    assert torch.equal(children[1][key], children[2][key])
    assert not torch.equal(children[0][key], children[1][key])
    if renorm in ("auto", "reset"):
        child = fuse(parents, recipe.changed(renorm="none"), images()).child
        reset_batch_norm(child, images().augmented(Augmentation.suited_to((3, 8, 8)), 5))
        assert all(torch.equal(tensor, children[1][name]) for name, tensor in child.state_dict().items())


def test_parents_are_renewed_with_the_same_images(parents):
    recipe = Recipe(refit="none", criterion="weights", restarts=1, parents_renorm="reset", augment_statistics=True)
    teachers = fuse(parents, recipe, images()).teachers
    reset_batch_norm(parents[0], images().augmented(Augmentation.suited_to((3, 8, 8)), 0))
    assert all(torch.equal(tensor, teachers[0].state_dict()[key]) for key, tensor in parents[0].state_dict().items())
