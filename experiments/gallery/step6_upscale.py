"""Fuse two upscalers, and look at one picture along the path between them.

    python -m experiments.gallery.step6_upscale

Two networks that double the size of pictures (convolutions and PReLU, no BatchNorm, a kind that upscaling programs load
as one `.pth`) are trained here from different starts, on coloured fields with edges. Averaged as they are, as people
interpolate such files, what they learned cancels: no better than plain enlargement, which networks of this kind begin
from; of other kinds users report very dark pictures. Matched first they do hardly better, as channels are not quite
alike and nothing sets right how strong they are. Refitted, without one picture in full size, the child is as good as
its parents. The picture has the middle of one square as each makes it, enlarged, and below it how far that is from the
square itself, on one scale: dark is near.

Needs `pip install 'depfuse[upscale]'`, and half a minute. Reached on 24 pictures that nothing has seen (seed 0, one
thread): plain enlargement 20.14 dB, parents 21.96 and 21.98 dB; average 20.11, aligned 20.47, refitted 22.01 dB.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.nn import functional

from depfuse import fuse
from depfuse.evaluate import evaluate
from depfuse.fusion.comparison import matched_average, naive_child
from depfuse.models import build_network
from depfuse.tasks.regression import Regression

ARCH = "spandrel:Compact(num_feat=16, num_conv=4, upscale=2)"
SIDE = 32  # pixels of a picture in full size
STEPS = 150
MIDDLE = slice(4, 28)  # pixels of a square that are shown
WORST = 0.25  # difference from the square, in units of white, that is shown brightest


def squares(count: int, generator: torch.Generator) -> Tensor:
    """Draw pictures (count, 3, SIDE, SIDE) in [0, 1]: colours that pass into one another, with edges."""
    fields = functional.interpolate(torch.rand(count, 4, 6, 6, generator=generator), SIDE, mode="bicubic")
    return torch.where(fields[:, 3:] > 0.5, fields[:, :3], 1 - fields[:, :3]).clamp(0, 1)


def shrunk(pictures: Tensor) -> Tensor:
    return functional.interpolate(pictures, scale_factor=0.5, mode="area")


def trained(seed: int, pictures: Tensor) -> nn.Module:
    torch.manual_seed(seed)
    network = build_network(ARCH).train()
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(STEPS):
        wanted = pictures[torch.randint(len(pictures), (16,))]
        loss = functional.l1_loss(network(shrunk(wanted)), wanted)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return network.eval()


def main(picture: Path) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    seen, unseen = squares(150, generator), squares(24, generator)
    parents = [trained(seed, seen) for seed in range(2)]
    result = fuse(parents, calibration=shrunk(seen))

    made = {
        "enlarged": nn.Upsample(scale_factor=2),
        "parent a": parents[0],
        "parent b": parents[1],
        "average": naive_child(result, (0.5, 0.5), "none"),
        "aligned": matched_average(result, (0.5, 0.5), "none"),
        "refitted": result.child,
    }
    reached = {}
    for name, network in made.items():
        reached[name] = evaluate(network, [(shrunk(unseen), unseen)], Regression()).value
        print(f"{name:10s} {reached[name]:5.2f} dB")
    draw(picture, unseen[:1], made, reached)
    return reached


def draw(picture: Path, wanted: Tensor, made: dict[str, nn.Module], reached: dict[str, float]) -> None:
    """Show the middle of a square, what each network makes of it, and below that the difference."""
    with torch.no_grad():
        shown = {name: network.eval()(shrunk(wanted)).clamp(0, 1) for name, network in made.items()}
    figure, panels = plt.subplots(2, 1 + len(shown), figsize=(10, 3.3), layout="constrained")
    for column, (name, own) in enumerate({"the square": wanted, **shown}.items()):
        title = f"{name}\n{reached[name]:.2f} dB" if name in reached else f"{name}\n"
        panels[0, column].set_title(title, fontsize=10)
        panels[0, column].imshow(own[0, :, MIDDLE, MIDDLE].permute(1, 2, 0))
        if name in reached:
            difference = (own - wanted)[0, :, MIDDLE, MIDDLE].abs().mean(0)
            scale = panels[1, column].imshow(difference, cmap="magma", vmin=0, vmax=WORST)
    for panel in panels.flat:
        panel.set_axis_off()
    figure.colorbar(scale, ax=panels[1, 0], location="left", fraction=0.9, aspect=8, label="difference")
    figure.savefig(picture, dpi=90)
    plt.close(figure)


if __name__ == "__main__":
    torch.set_num_threads(1)  # as for the figures above
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".png"))
