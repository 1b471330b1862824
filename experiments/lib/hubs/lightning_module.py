"""A LightningModule as a user has it in a file of their own."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional

from depfuse.models.resnet import BasicBlock


class Lit(lightning.LightningModule):
    """Two residual stages of `width` and twice as many channels, trained by AdamW with a cosine schedule."""

    def __init__(self, width: int = 16, classes: int = 10, rate: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.rate = rate
        first = nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        stages = BasicBlock(width, width, 1), BasicBlock(width, 2 * width, 2)
        self.net = nn.Sequential(*first, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, classes))

    def forward(self, images: Tensor) -> Tensor:
        """Map pictures (N, 3, H, W) to logits (N, classes)."""
        return self.net(images)  # type: ignore[no-any-return]

    def training_step(self, batch: Any, _: int) -> Tensor:
        """Compute the cross-entropy of a batch."""
        images, labels = batch
        return functional.cross_entropy(self(images), labels)

    def configure_optimizers(self) -> Any:
        """Make the optimiser and its schedule over all steps."""
        optimiser = torch.optim.AdamW(self.parameters(), self.rate, weight_decay=0.01)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        return [optimiser], [{"scheduler": schedule, "interval": "step"}]
