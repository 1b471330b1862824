"""Train a network on a data set, resumable."""

from depfuse.train.training import (
    EpochReport,
    TrainRecipe,
    fit,
    train,
)

__all__ = [
    "EpochReport",
    "TrainRecipe",
    "fit",
    "train",
]
