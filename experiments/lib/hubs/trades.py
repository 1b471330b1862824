"""Hubs and trainers: how each trains, writes and loads a small network of the digits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.lib.hubs.pictures import MEAN, SIDE, STD

CLASSES, EPOCHS, BATCH, RATE = 10, 10, 32, 3e-3
Logits = Callable[[Tensor], Tensor]


class Trade(ABC):
    """A hub or a trainer.

    Attributes
    ----------
    suffix
        Of what it writes; a folder where empty.
    arch
        What `depfuse fuse` has to be told; nothing where the files say it.
    """

    suffix = ""
    arch = ""

    @abstractmethod
    def train(self, place: Path, images: Tensor, labels: Tensor, seed: int) -> None:
        """Train a network and write it as the hub does."""

    @abstractmethod
    def load(self, place: Path) -> Logits:
        """Load what `depfuse fuse` wrote, by the hub's own loader alone."""


def descend(network: nn.Module, logits: Logits, images: Tensor, labels: Tensor, epochs: int = EPOCHS) -> None:
    """Train a network by AdamW with a cosine schedule, as it stands in scripts; leave it in eval mode."""
    network.train()
    steps = epochs * (len(images) // BATCH)
    optimiser = torch.optim.AdamW(network.parameters(), RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        chosen = torch.randint(len(images), (BATCH,))
        optimiser.zero_grad()
        functional.cross_entropy(logits(images[chosen]), labels[chosen]).backward()
        optimiser.step()
        schedule.step()
    network.eval()


class Transformers(Trade):
    """`save_pretrained` and `from_pretrained` of an image classifier."""

    def __init__(self, name: str, **settings: Any) -> None:
        self._name, self._settings = name, settings

    def train(self, place: Path, images: Tensor, labels: Tensor, seed: int) -> None:
        """Train a network and write its folder, with what prepares pictures."""
        import transformers

        torch.manual_seed(seed)
        config = getattr(transformers, f"{self._name}Config")(num_labels=CLASSES, **self._settings)
        network = getattr(transformers, f"{self._name}ForImageClassification")(config)
        descend(network, lambda batch: network(batch).logits, images, labels)
        network.save_pretrained(place)
        transformers.ConvNextImageProcessor(
            size={"shortest_edge": SIDE}, crop_pct=1.0, image_mean=[MEAN] * 3, image_std=[STD] * 3
        ).save_pretrained(place)

    def load(self, place: Path) -> Logits:
        """Load a folder by `from_pretrained`."""
        import transformers

        network = transformers.AutoModelForImageClassification.from_pretrained(place)
        return lambda batch: network(batch).logits  # type: ignore[no-any-return]


class Timm(Trade):
    """A file with timm's names, and `create_model(checkpoint_path=)`."""

    suffix = ".safetensors"

    def __init__(self, name: str) -> None:
        self._name, self.arch = name, f"timm:{name}(num_classes={CLASSES})"

    def train(self, place: Path, images: Tensor, labels: Tensor, seed: int) -> None:
        """Train a network and write its tensors."""
        import timm
        from safetensors.torch import save_file

        torch.manual_seed(seed)
        network = timm.create_model(self._name, num_classes=CLASSES)
        descend(network, network, images, labels)
        save_file(network.state_dict(), place)

    def load(self, place: Path) -> Logits:
        """Load a file by `create_model`."""
        import timm

        return timm.create_model(self._name, num_classes=CLASSES, checkpoint_path=str(place)).eval()  # type: ignore[no-any-return]


class Lightning(Trade):
    """A Trainer's checkpoint, and `load_from_checkpoint`."""

    suffix = ".ckpt"
    arch = f"{Path(__file__).with_name('lightning_module.py')}:Lit"

    def train(self, place: Path, images: Tensor, labels: Tensor, seed: int) -> None:
        """Train a module by a Trainer and write its checkpoint."""
        import lightning
        from torch.utils.data import DataLoader, TensorDataset

        from experiments.lib.hubs.lightning_module import Lit

        torch.manual_seed(seed)
        trainer = lightning.Trainer(
            max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(Lit(), DataLoader(TensorDataset(images, labels), BATCH, shuffle=True, drop_last=True))
        trainer.save_checkpoint(place)

    def load(self, place: Path) -> Logits:
        """Load a checkpoint by `load_from_checkpoint`."""
        from experiments.lib.hubs.lightning_module import Lit

        return Lit.load_from_checkpoint(place, map_location="cpu").eval()  # type: ignore[no-any-return]


TRADES: dict[str, Trade] = {
    "Hugging Face, ResNet": Transformers(
        "ResNet", embedding_size=16, hidden_sizes=[16, 32, 64], depths=[1, 1, 1], layer_type="basic"
    ),
    "Hugging Face, ConvNeXt V2": Transformers(
        "ConvNextV2", hidden_sizes=[16, 32, 64], depths=[1, 1, 2], num_stages=3, patch_size=2
    ),
    "timm, test_resnet": Timm("test_resnet"),
    "Lightning": Lightning(),
}
