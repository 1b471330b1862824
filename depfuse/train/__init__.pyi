from .interfaces import EpochReport
from .loop import fit, train
from .recipe import TrainRecipe
from .resuming import Saving

__all__ = ["EpochReport", "Saving", "TrainRecipe", "fit", "train"]
