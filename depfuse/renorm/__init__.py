"""Renormalisation: statistics of the merged network from calibration images."""

from depfuse.renorm.batch_norm import has_batch_norm, reset_batch_norm
from depfuse.renorm.registry import renormalise
from depfuse.renorm.repair import repair

__all__ = ["has_batch_norm", "renormalise", "repair", "reset_batch_norm"]
