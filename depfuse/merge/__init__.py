"""Merging: one network from many aligned ones."""

from depfuse.merge.average import average
from depfuse.merge.fisher import fisher_information
from depfuse.merge.polish import Polished, polish
from depfuse.merge.refit import NaturalGradientTraining, Together, can_be_refitted, refit_head, refit_layers
from depfuse.merge.shares import Shares

__all__ = [
    "NaturalGradientTraining",
    "Polished",
    "Shares",
    "Together",
    "average",
    "can_be_refitted",
    "fisher_information",
    "polish",
    "refit_head",
    "refit_layers",
]
