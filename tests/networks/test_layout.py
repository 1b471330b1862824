"""The memory layout of images: no processor and no layer may be given one that it cannot take."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depfuse.data import DataSet
from depfuse.errors import RecipeError
from depfuse.networks.memory_format import choose_layout, differentiable, takes_channels_last
from depfuse.train import TrainRecipe, train

CPU = torch.device("cpu")
# As on a processor without AVX-512; memory that is written past its end ends the process at once.
WITHOUT_AVX512 = {
    "OMP_NUM_THREADS": "1",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MALLOC_CHECK_": "3",
    "MALLOC_PERTURB_": "165",
}
CHECKED_MALLOC = [str(path) for path in Path("/lib").glob("*/libc_malloc_debug.so.0")]


def channels_last(*shape: int) -> Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


def saved_input_is_plain(output: Tensor) -> bool:
    node = output.grad_fn
    assert node is not None
    return all(
        tensor.stride() == torch.empty(tensor.shape).stride() for tensor in (node._saved_input, node._saved_weight)
    )


@pytest.mark.parametrize(
    ("layer", "plain"),
    [
        (nn.Conv2d(2, 8, 1, stride=2), True),
        (nn.Conv2d(6, 8, 1, stride=(1, 2)), True),
        (nn.Conv2d(12, 8, 1, stride=2, groups=2), True),
        (nn.ConvTranspose2d(8, 4, 1, stride=2, output_padding=1), True),
        (nn.Conv2d(4, 8, 1), False),
        (nn.Conv2d(4, 8, 3, stride=2), False),
        (nn.Conv2d(64, 8, 1, stride=2), False),
    ],
)
def test_convolutions_that_overwrite_memory_are_differentiated_in_plain_layout(layer: nn.Module, plain: bool) -> None:
    layer = layer.to(memory_format=torch.channels_last)
    channels = layer.in_channels
    images = channels_last(3, channels, 8, 8).requires_grad_()
    wanted = layer(images)
    with differentiable(CPU):
        found = layer(images)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert saved_input_is_plain(found) == plain
    found.square().sum().backward()
    assert images.grad is not None


def test_layouts_are_changed_however_a_convolution_is_called() -> None:
    images, weight = channels_last(3, 4, 8, 8), torch.randn(8, 4, 1, 1, requires_grad=True)
    with differentiable(CPU):
        by_name = F.conv2d(input=images, weight=weight, stride=2)
        permuted = F.conv2d(torch.randn(3, 8, 8, 4).permute(0, 3, 1, 2), weight, None, (2, 2))
        exported = torch.ops.aten.convolution.default(images, weight, None, [2, 2], [0, 0], [1, 1], False, [0, 0], 1)
    assert all(map(saved_input_is_plain, (by_name, permuted, exported)))


class Viewing(nn.Module):
    """Flattens with `view`, which tensors in channels-last layout refuse."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(channels, 4, 3, padding=1), nn.Linear(4 * 64, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.conv(images).view(len(images), -1))


def test_a_network_that_views_gets_plain_images(digits: DataSet) -> None:
    images = digits.example(2).repeat(1, 3, 1, 1)
    assert choose_layout(Viewing(3).eval(), images[:1])[0] is torch.contiguous_format
    assert not takes_channels_last(Viewing(3).eval(), images)
    scores = train(Viewing(), digits, TrainRecipe.create(epochs=1))
    assert scores["accuracy"] > 0.5


def test_what_is_compiled_chooses_its_layouts_itself(digits: DataSet) -> None:
    with pytest.raises(RecipeError, match="compile is for CUDA"):
        train(Viewing(), digits, TrainRecipe.create(epochs=1, compile=True))


SMALLEST = """
import torch
from torch import nn
for _ in range(30):
    layer = nn.Conv2d(4, 8, 1, stride=2, bias=False).to(memory_format=torch.channels_last)
    images = torch.randn(128, 4, 8, 8).contiguous(memory_format=torch.channels_last)
    layer(images).square().sum().backward()
"""
EVERY_GRADIENT = """
import torch
from torch import nn
from depfuse.data import calibration_loader, load_data
from depfuse.ensemble.ensemble import Ensemble
from depfuse.refit import Session
from depfuse.merge import fisher_information
from depfuse.refit.second_order.gauss_newton import gauss_newton_step
from depfuse.data.augmentation import Augmentation
from depfuse.recipe import Recipe
from depfuse.train import TrainRecipe, fit
from depfuse import fuse

class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.short, self.long = nn.Conv2d(4, 8, 1, stride=2), nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.up, self.head = nn.ConvTranspose2d(8, 3, 1, stride=2, output_padding=1), nn.Linear(3, 10)

    def forward(self, x):
        x = self.norm(self.first(x)).relu().permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        return self.head(self.up((self.short(x) + self.long(x)).relu()).amax((2, 3)))

data = load_data("digits")
pair = []
for seed in (0, 1):
    torch.manual_seed(seed)
    pair.append(Own())
    fit(pair[-1], data, TrainRecipe.create(epochs=2, channels_last=seed == 0))
images = calibration_loader(data, 200, batch_size=100)
teacher = Ensemble(pair, (0.5, 0.5))
fit(pair[0], data, TrainRecipe.create(epochs=1), teacher=teacher)
gauss_newton_step(pair[0].eval(), teacher, images, augment=None, seed=0, iterations=2)
fisher_information(pair[0], images.first(20))
Session.towards(pair[0].eval(), teacher, images).second_pass(4, Augmentation())
fuse(pair, Recipe(solver="sinkhorn-implicit", iterations=10, refit="ridge", refit_steps=4), images)
print("done")
"""


def on_avx2(program: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **WITHOUT_AVX512}
    if CHECKED_MALLOC:
        environment["LD_PRELOAD"] = CHECKED_MALLOC[0]
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], env=environment, capture_output=True, text=True
    )


@pytest.mark.slow
def test_no_gradient_overwrites_memory_without_avx512() -> None:
    if on_avx2(SMALLEST).returncode == 0:
        pytest.skip("this version of oneDNN differentiates every convolution")
    done = on_avx2(EVERY_GRADIENT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "done"
