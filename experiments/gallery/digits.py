"""What the gallery's scripts share: digits, the parents in checkpoints/, and accuracy digit by digit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from matplotlib.figure import Figure
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


def draw_by_digit(networks: Mapping[str, nn.Module], picture: Path, height: float) -> None:
    """Draw accuracy digit by digit as a table of shades, a row with a title for each network."""
    figure = Figure(figsize=(7, height), layout="constrained")
    axes = figure.subplots()
    table = torch.stack([accuracy_by_digit(network) for network in networks.values()]).numpy()
    image = axes.imshow(table, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(10))
    axes.set_xlabel("digit")
    axes.set_yticks(range(len(networks)), list(networks), fontsize="small")
    figure.colorbar(image, label="accuracy (%)")
    figure.savefig(picture, dpi=110)
