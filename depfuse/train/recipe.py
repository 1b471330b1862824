"""Describe how a network is trained, without importing torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from depfuse.data.augmentation import Augmentation
from depfuse.errors import RecipeError

if TYPE_CHECKING:
    from depfuse.data.tensors import DataSet

Schedule = Literal["linear", "cosine"]
Precision = Literal["auto", "float32", "bfloat16"]
SAVE_SECONDS = 30.0  # least time between two savings of a training's state


class TrainRecipe(BaseModel):
    """How a network is trained: SGD with Nesterov momentum, a warm-up, then a decay to zero.

    Weight decay is for the weights of convolutions and linear layers; biases and BatchNorm have none.
    `TrainRecipe.create` raises `RecipeError` with one sentence where a setting is wrong.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(20, ge=0, description="passes over the training images")
    batch_size: int = Field(128, ge=2, description="images per step")
    learning_rate: float = Field(0.2, gt=0, le=1e38, description="at the end of the warm-up")
    momentum: float = Field(0.9, ge=0, lt=1, description="Nesterov's")
    weight_decay: float = Field(5e-4, ge=0, description="of convolutions and linear layers")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="share of the target spread over all classes")
    warmup: float = Field(2.0, ge=0, description="epochs in which the learning rate rises from zero")
    schedule: Schedule = Field("linear", description="how it falls to zero afterwards")
    flip: bool = Field(False, description="mirror images at random")
    translate: int = Field(0, ge=0, description="shift images by up to this many pixels")
    cutout: int = Field(0, ge=0, description="side in pixels of a square that is blacked out")
    precision: Precision = Field("auto", description="bfloat16 autocast; auto: where it is faster")
    channels_last: bool = Field(True, description="memory layout of images and weights, where the network can take it")
    compile: bool | None = Field(
        None, description="torch.compile, for CUDA; None: steps are recorded as a CUDA graph instead"
    )
    seed: int = Field(0, ge=0, le=2**63 - 1, description="of the order of the images and their augmentation")

    @classmethod
    def create(cls, **settings: Any) -> TrainRecipe:
        """Build a recipe; a `RecipeError` names the first setting that is wrong and why."""
        try:
            return cls(**settings)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "recipe"
            raise RecipeError(f"training setting {where}: {first['msg'].removeprefix('Value error, ')}") from None

    @classmethod
    def suited_to(cls, data: DataSet, **settings: Any) -> TrainRecipe:
        """Build a recipe whose augmentation suits the images, where `settings` do not say otherwise."""
        suited = data.suited_augmentation
        return cls.create(**{"flip": suited.flip, "translate": suited.translate, **settings})

    @property
    def augmentation(self) -> Augmentation:
        """Augmentation of the training images."""
        return Augmentation(self.flip, self.translate, self.cutout)

    def learning_rate_at(self, epoch: float) -> float:
        """Compute the learning rate `epoch` epochs after the start, a fraction within an epoch."""
        warmup = min(self.warmup, self.epochs / 2)
        if epoch < warmup:
            return self.learning_rate * epoch / warmup
        progress = min(1.0, (epoch - warmup) / max(self.epochs - warmup, 1e-12))
        if self.schedule == "cosine":
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
        return self.learning_rate * (1 - progress)
