"""Fuse two folders as Hugging Face has them, and load the child from its folder.

    python -m experiments.gallery.step10_hubs

Two `ResNetForImageClassification` are trained here on pictures of digits over coloured fields, one on the digits that
it calls zero to four, the other on five to nine, and saved as any hub has them: weights, `config.json` with the names
of their classes, and how pictures are prepared. `depfuse fuse folder_a folder_b --data photos --out child` reads all of
that, sees photographs without labels, and writes a folder of the same kind with ten classes and a model card. The
picture has what transformers' own pipeline says of eight pictures with each of the three folders.

Needs `pip install 'depfuse[huggingface,experiments]'`, and about a minute. Reached on 400 pictures that nothing has
seen (one thread of an AMD EPYC with AVX2): folder_a 49.2 % and folder_b 47.8 %, which know half of the digits each, and
the child 91.5 %.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from transformers import ConvNextImageProcessor, ResNetConfig, ResNetForImageClassification, pipeline
from transformers.utils import logging

from depfuse.cli import main as depfuse
from experiments.lib.hubs.pictures import MEAN, SIDE, STD, pictures
from experiments.lib.hubs.trades import descend

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
KNOWN = {"folder_a": range(5), "folder_b": range(5, 10)}
EPOCHS, SHOWN = 8, 8


def train(folder: Path, images: Tensor, labels: Tensor, known: Sequence[int], seed: int) -> None:
    """Train a network of these labels and save it as transformers does."""
    torch.manual_seed(seed)
    config = ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 64], depths=[1, 1, 1], layer_type="basic",
        id2label={number: NAMES[label] for number, label in enumerate(known)},
        label2id={NAMES[label]: number for number, label in enumerate(known)},
    )  # fmt: skip
    network = ResNetForImageClassification(config)
    own = torch.isin(labels, torch.tensor(known))
    descend(network, lambda batch: network(batch).logits, (images[own] - MEAN) / STD, labels[own] - known[0], EPOCHS)
    network.save_pretrained(folder)
    ConvNextImageProcessor(
        size={"shortest_edge": SIDE}, crop_pct=1.0, image_mean=[MEAN] * 3, image_std=[STD] * 3
    ).save_pretrained(folder)


def answers(folder: Path, shown: Sequence[Image.Image]) -> list[str]:
    """Ask transformers' own pipeline what is on pictures."""
    classify = pipeline("image-classification", model=str(folder), device="cpu")
    return [found[0]["label"] for found in classify(list(shown), top_k=1, batch_size=100)]


def show(picture: Path, shown: Sequence[Image.Image], labels: Sequence[int], said: dict[str, list[str]]) -> None:
    figure = Figure(figsize=(7, 1.5), layout="constrained")
    for column, axes in enumerate(figure.subplots(1, SHOWN)):
        axes.imshow(shown[column])
        axes.set_xticks([])
        axes.set_yticks([])
        for row, (name, words) in enumerate(said.items()):
            right = words[column] == NAMES[labels[column]]
            axes.text(
                0.5, -0.18 - 0.2 * row, words[column], transform=axes.transAxes, ha="center", va="center", fontsize=9,
                color="#00724d" if right else "#b3400d", weight="bold" if right else "normal",
            )  # fmt: skip
            if not column:
                axes.text(-0.15, -0.18 - 0.2 * row, name, transform=axes.transAxes, ha="right", va="center", fontsize=9)
    figure.savefig(picture, dpi=110)


def main(picture: Path) -> dict[str, float]:
    logging.disable_progress_bar()
    seen, labels = pictures(slice(1297), torch.Generator().manual_seed(0))
    unseen, truth = pictures(slice(1297, 1697), torch.Generator().manual_seed(1))
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        for seed, (folder, known) in enumerate(KNOWN.items()):
            train(place / folder, seen, labels, known, seed)
        (place / "photos").mkdir()
        for number, photograph in enumerate(seen[:600]):
            to_pil_image(photograph).save(place / "photos" / f"{number:03d}.png")

        folders = [place / folder for folder in (*KNOWN, "child")]
        status = depfuse(["fuse", *map(str, folders[:2]), "--data", str(place / "photos"), "--out", str(folders[2])])
        assert status == 0, "depfuse fuse failed"
        asked = [to_pil_image(each) for each in unseen]
        said = {folder.name: answers(folder, asked) for folder in folders}

    wanted = [NAMES[label] for label in truth.tolist()]
    reached = {
        name: 100 * sum(word == right for word, right in zip(words, wanted, strict=True)) / len(wanted)
        for name, words in said.items()
    }
    for name, accuracy in reached.items():
        print(f"{name:9s} {accuracy:5.1f} %")
    first = [wanted.index(each) for each in NAMES][:SHOWN]
    show(picture, [asked[number] for number in first], [int(truth[number]) for number in first],
         {name: [words[number] for number in first] for name, words in said.items()})  # fmt: skip
    return reached


if __name__ == "__main__":
    torch.set_num_threads(1)  # as for the figures above
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".png"))
