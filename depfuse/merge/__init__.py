"""Merging: one network from many aligned ones."""

from depfuse.merge.average import average
from depfuse.merge.fisher import fisher_information
from depfuse.merge.shares import Shares

__all__ = ["Shares", "average", "fisher_information"]
