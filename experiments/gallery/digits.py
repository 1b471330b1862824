"""What the gallery's scripts share: digits, the parents in checkpoints/, and accuracy digit by digit."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from depfuse.data import Loader, calibration_loader, load_data
from depfuse.io.into_network import load_network
from experiments.lib.places import CHECKPOINTS

FILES = [CHECKPOINTS / f"digits-{name}.safetensors" for name in "ab"]
BLUE, RED, GREY = "#0072B2", "#D55E00", "#999999"

data = load_data("digits")
calibration = calibration_loader(data, 1000)  # training images; no label is read
test = Loader(data.test, data.preprocessing, batch_size=500)


def parents() -> list[nn.Module]:
    """Two networks: `a` saw nine tenths of the images of 0 to 4 and one tenth of those of 5 to 9, `b` the reverse."""
    return [load_network(file) for file in FILES]


def accuracy_by_digit(network: nn.Module) -> Tensor:
    """Accuracy (10,) in per cent of the test images of each digit."""
    images, labels = next(iter(test))
    with torch.no_grad():
        right = (network(images).argmax(1) == labels).double()
    return 100 * torch.stack([right[labels == digit].mean() for digit in range(10)])
