"""One picture along the path between two networks: a row for each way to merge, a column for each share.

Below each picture is how far it is from the mean of the parents' pictures, each counting by its share: dark is near,
and one scale holds for all, on which the largest difference is white.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from depfuse.errors import RecipeError
from depfuse.networks.forward import run_network
from depfuse.networks.running import evaluating
from depfuse.tasks.selection import find_scores
from depfuse.tasks.tallies.regression import range_of_pictures

OVERSHOOT = 0.5  # of the range of pictures, by which parents may go beyond it
SMALLEST, LARGEST = 128, 256  # pixels a side of what is shown: enlarged by whole numbers, and cut to the middle
TEXT, GAP, LABELS = 15, 4, 84  # pixels: height of letters, distance of pictures, width of the rows' names


@dataclass
class Strip:
    """What networks make of one input.

    Attributes
    ----------
    inputs
        The input, a batch of one.
    lowest, highest
        Values of black and white.
    rows
        Name of a row -> share of the second parent -> picture (H, W, 3) uint8.
    """

    inputs: Any
    lowest: float
    highest: float
    rows: dict[str, dict[float, Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, parent: nn.Module, inputs: Any) -> Strip:
        """Begin a strip; raise `RecipeError` where a parent gives no pictures."""
        outputs = _outputs(parent, inputs)
        width = range_of_pictures(outputs, OVERSHOOT) if isinstance(outputs, Tensor) else None
        if width is None:
            raise RecipeError(
                "a strip shows what networks make of a picture, and these give no pictures, (1 or 3, H, W) in [0, 1],"
                " [-1, 1] or [0, 255]: leave out `picture`"
            )
        lowest = -1.0 if width == 2 else 0.0
        return cls(inputs, lowest, lowest + width)

    def add(self, row: str, share: float, network: nn.Module) -> None:
        """Add the picture that a network gives."""
        picture = _outputs(network, self.inputs)[0].float().cpu()
        scaled = ((picture - self.lowest) / (self.highest - self.lowest)).clamp(0, 1)
        pixels = (255 * scaled).round().to(torch.uint8).permute(1, 2, 0)
        self.rows.setdefault(row, {})[share] = pixels.expand(-1, -1, 3)

    def draw(self, path: Path, ends: Sequence[str]) -> None:
        """Write the strip as PNG; every row has both ends, which are the pictures of the networks called so."""
        shares = sorted({share for row in self.rows.values() for share in row})
        first = next(iter(next(iter(self.rows.values())).values()))
        panel = _panel(first)
        width, height = panel.size
        sheet = Image.new(
            "RGB", (LABELS + len(shares) * (width + GAP), TEXT + 2 * GAP + 2 * len(self.rows) * (height + GAP)), "white"
        )
        draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT)
        for column, share in enumerate(shares):
            heading = {0.0: ends[0], 1.0: ends[1]}.get(share, f"{100 * share:.0f} % of {ends[1]}")
            while len(heading) > 1 and draw.textlength(heading, font) > width:
                heading = heading[:-1]
            draw.text((LABELS + column * (width + GAP), GAP), heading, "black", font)
        for line, (name, row) in enumerate(_with_differences(self.rows)):
            top = TEXT + 2 * GAP + line * (height + GAP)
            draw.text((GAP, top + (height - TEXT) // 2), name, "black", font)
            for share, pixels in row.items():
                sheet.paste(_panel(pixels), (LABELS + shares.index(share) * (width + GAP), top))
        sheet.save(path, "PNG")


def detail(images: Tensor) -> Tensor:
    """Compute the mean square of differences between neighbouring pixels of images (N, C, H, W): (N,)."""
    images = images.float()
    return sum(images.diff(dim=axis).square().mean((1, 2, 3)) for axis in (2, 3))  # type: ignore[return-value]


def _with_differences(rows: Mapping[str, Mapping[float, Tensor]]) -> list[tuple[str, Mapping[float, Tensor]]]:
    """Put below each row how far its pictures (H, W, 3) are from those of both ends, mixed by their shares."""
    found = {
        name: {
            share: (own.float() - (1 - share) * row[0.0].float() - share * row[1.0].float()).abs().mean(2)
            for share, own in row.items()
        }
        for name, row in rows.items()
    }
    most = max(float(own.max()) for row in found.values() for own in row.values())
    lines: list[tuple[str, Mapping[float, Tensor]]] = []
    for name, row in rows.items():
        scaled = {share: (own * 255 / max(most, 1.0)).to(torch.uint8) for share, own in found[name].items()}
        lines += [
            (name, row),
            ("difference", {share: own[:, :, None].expand(-1, -1, 3) for share, own in scaled.items()}),
        ]
    return lines


def _outputs(network: nn.Module, inputs: Any) -> Any:
    with torch.no_grad(), evaluating(network):
        outputs = run_network(network, inputs)
    scores = find_scores(outputs)
    return outputs if scores is None else scores(outputs)


def _panel(pixels: Tensor) -> Image.Image:
    """Cut the middle out of a large picture, and enlarge a small one without smoothing it."""
    height, width = pixels.shape[:2]
    tall, wide = min(height, LARGEST), min(width, LARGEST)
    top, left = (height - tall) // 2, (width - wide) // 2
    image = Image.fromarray(pixels[top : top + tall, left : left + wide].contiguous().numpy())
    times = max(1, -(-SMALLEST // max(tall, wide)))
    return image.resize((wide * times, tall * times), Image.Resampling.NEAREST)
