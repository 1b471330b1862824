"""Make one segmentation network of five folds.

    python -m experiments.gallery.step7_folds

Five U-Nets are trained here as segmentation frameworks do it: each on four other fifths of 100 small scenes, by
cross-entropy and Dice, with deep supervision, so that in training they return maps of two sizes. People keep all five
and average what they predict, which costs five networks. Averaged as they are, weight by weight, they predict next to
nothing. Matched and refitted to what the five predict together, on the same 100 scenes and without one mask, they are
one network. The picture has what each makes of three scenes that none of them has seen: two folds take half of the
seven for a zero, and the child does not.

Takes a minute or two. The folds' learning rate was chosen on scenes of another seed (`experiments run fold_rates`).
Reached in Dice on 200 scenes that nothing has seen (seed 0, one thread): folds 87.9 to 92.1 %,
their average 27.7, their ensemble 93.7, the child 94.2.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional

from depfuse import fuse
from depfuse.evaluate import evaluate
from depfuse.fusion.comparison import naive_child
from depfuse.tasks.classes import Dense
from depfuse.tasks.scores import DICE
from experiments.gallery.digits import data
from experiments.lib.folds.scenes import Scenes
from experiments.lib.folds.training import FOLDS, Ensemble, Plan, fold

SIDE = 24  # pixels of a scene
CLASSES = (0, 1, 7)  # digits; what lies around them is class 0
PLAN = Plan(scenes=100, epochs=25, batch_size=8, learning_rate=0.1, width=8)
SHOWN = 3
COLOURMAP = ListedColormap(["#202020", "#E69F00", "#56B4E9", "#CC79A7"])


def drawn(count: int, generator: torch.Generator, test: bool) -> tuple[Tensor, Tensor]:
    """Draw scenes (count, 1, SIDE, SIDE), a digit in cloudy noise, and the class of each pixel."""
    part = data.required_test if test else data.train
    few = torch.isin(part.required_labels, torch.tensor(CLASSES)).nonzero()[:, 0]
    images = functional.interpolate(torch.randn(count, 1, 8, 8, generator=generator), SIDE, mode="bicubic") / 3
    labels = torch.zeros(count, SIDE, SIDE, dtype=torch.int64)
    for image, mask in zip(images, labels, strict=True):
        number = few[torch.randint(len(few), (), generator=generator)]
        digit = functional.interpolate(part.images[number][None].float() / 255, scale_factor=2.0)[0, 0]
        top, left = torch.randint(SIDE - len(digit) + 1, (2,), generator=generator).tolist()
        box = slice(top, top + len(digit)), slice(left, left + len(digit))
        image[0][box] += digit
        mask[box][digit > 0.4] = 1 + CLASSES.index(int(part.required_labels[number]))
    return images, labels


SCENES = Scenes("digits in noise", 1, 1 + len(CLASSES), 2, drawn)


def main(picture: Path) -> dict[str, float]:
    seen, masks = drawn(PLAN.scenes, torch.Generator().manual_seed(0), False)
    unseen, wanted = drawn(200, torch.Generator().manual_seed(1), True)
    folds = [fold(SCENES, "batch", seen, masks, number, 0, PLAN) for number in range(FOLDS)]
    result = fuse(folds, calibration=seen)  # no mask is read

    networks = dict(zip((f"fold {number}" for number in range(1, FOLDS + 1)), folds, strict=True))
    networks |= {"average": naive_child(result, (1 / FOLDS,) * FOLDS, "reset")}
    networks |= {"ensemble": Ensemble(folds), "child": result.child}
    reached = {name: evaluate(network, [(unseen, wanted)], Dense()).by(DICE) for name, network in networks.items()}
    for name, dice in reached.items():
        print(f"{name:8s} {100 * dice:5.1f} % Dice")
    draw(picture, unseen[:SHOWN], wanted[:SHOWN], networks, reached)
    return reached


def draw(
    picture: Path, scenes: Tensor, masks: Tensor, networks: dict[str, nn.Module], reached: dict[str, float]
) -> None:
    """Draw scenes, their masks, and what networks predict, with the Dice of all test scenes."""
    with torch.no_grad():
        maps = {"mask": masks, **{name: network(scenes).argmax(1) for name, network in networks.items()}}
    figure = Figure(figsize=(9.5, 1.05 * len(scenes) + 0.4), layout="constrained")
    axes = figure.subplots(len(scenes), 1 + len(maps))
    for row, scene in enumerate(scenes):
        axes[row, 0].imshow(scene[0].numpy(), cmap="gray")
        for column, found in enumerate(maps.values(), start=1):
            axes[row, column].imshow(COLOURMAP(found[row].numpy().astype(int)), interpolation="nearest")
    for own, name in zip(axes[0], ("scene", *maps), strict=True):
        own.set_title(f"{name}\n{100 * reached[name]:.0f} %" if name in reached else name, fontsize="small")
    for own in axes.flat:
        own.set_axis_off()
    figure.savefig(picture, dpi=90)


if __name__ == "__main__":
    torch.set_num_threads(1)  # as for the figures above
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".png"))
