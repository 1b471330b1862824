"""Renormalisation: repair of the variance lost by averaging, from calibration images or from the weights alone."""

from depfuse.renorm.data_free import rescale_by_norms
from depfuse.renorm.registry import chosen_method, renormalise
from depfuse.renorm.repair import repair
from depfuse.renorm.reset import has_running_statistics, reset_batch_norm, reset_keeping_function, untracked_statistics

__all__ = [
    "chosen_method",
    "has_running_statistics",
    "renormalise",
    "repair",
    "rescale_by_norms",
    "reset_batch_norm",
    "reset_keeping_function",
    "untracked_statistics",
]
