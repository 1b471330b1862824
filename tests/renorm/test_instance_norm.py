"""InstanceNorm with running statistics is followed, permuted and renewed as BatchNorm is."""

from __future__ import annotations

import copy

import pytest
import torch
from digits_parents import small_parents
from torch import Tensor, nn
from torch.nn import functional as F

from depfuse import Recipe, find_groups, fuse
from depfuse.data import Loader, Split, calibration_loader, load_data
from depfuse.data.floats import to_floats
from depfuse.renorm import reset_batch_norm

IMAGES = torch.randn(96, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 + 1
MERGED_ONLY = Recipe(refit="none", renorm="none", criterion="weights")


class Normed(nn.Module):
    """Convolutions with InstanceNorm by its module, or by functions on buffers of the network's own."""

    def __init__(self, seed: int, *, functional: bool = False, affine: bool = True) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
        self.norm = None if functional else nn.InstanceNorm2d(8, affine=affine, track_running_stats=True)
        if functional:
            self.register_buffer("mean", torch.randn(8))
            self.register_buffer("variance", torch.rand(8) + 0.5)
        else:
            self.train()
            for _ in range(20):
                self(IMAGES)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.normed(self.first(x)))).mean((2, 3))

    def normed(self, x: Tensor) -> Tensor:
        return self.norm(x) if self.norm else F.instance_norm(x, self.mean, self.variance, use_input_stats=False)


@pytest.mark.parametrize("settings", [{}, {"affine": False}, {"functional": True}], ids=["affine", "plain", "function"])
@pytest.mark.filterwarnings("ignore:.*running statistics")
def test_running_statistics_are_permuted_with_their_channels(settings: dict[str, bool]) -> None:
    first, second = Normed(0, **settings), Normed(1, **settings)
    assert [group.size for group in find_groups(first, IMAGES).free] == [8]
    child = fuse([first, second], MERGED_ONLY.changed(weights=(0.0, 1.0)), IMAGES).child
    torch.testing.assert_close(child(IMAGES), second(IMAGES), rtol=1e-4, atol=1e-5)


def test_reset_gives_the_statistics_that_training_gives() -> None:
    network = Normed(0)
    trained = copy.deepcopy(network)
    trained.norm.reset_running_stats()
    trained.norm.momentum = 1.0
    trained.train()(IMAGES)
    network.norm.running_mean.fill_(7.0)
    reset_batch_norm(network, Loader(Split(IMAGES, None), batch_size=32))
    torch.testing.assert_close(network.norm.running_mean, trained.norm.running_mean)
    torch.testing.assert_close(network.norm.running_var, trained.norm.running_var)
    assert not network.norm.training


def with_instance_norm(network: nn.Module) -> nn.Module:
    """Replace BatchNorms by InstanceNorms of the same statistics, which compute the same in evaluation mode."""
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            norm = nn.InstanceNorm2d(module.num_features, affine=True, track_running_stats=True)
            norm.load_state_dict(module.state_dict())
            parent, _, own = name.rpartition(".")
            setattr(network.get_submodule(parent), own, norm)
    return network.eval()


def test_children_are_those_of_batch_norm() -> None:
    data = load_data("digits")
    calibration, test = calibration_loader(data, 200), data.test.held().images[:200]
    images = to_floats(test, data.preprocessing)
    parents = small_parents()
    normed = [with_instance_norm(copy.deepcopy(network)) for network in parents]
    recipe = Recipe(refit="none", renorm="none")
    merged, expected = (fuse(networks, recipe, calibration).child for networks in (normed, parents))
    torch.testing.assert_close(merged(images), expected(images), rtol=1e-4, atol=1e-4)
    labels = data.test.required_labels[:200]
    refitted = fuse(normed, Recipe(refit="ridge", refit_steps=0), calibration).child
    own, merged_only = (float((model(images).argmax(1) == labels).float().mean()) for model in (refitted, merged))
    assert own > merged_only + 0.1
