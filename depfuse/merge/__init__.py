"""Average aligned parents into one network."""

from depfuse.merge.aligned import AlignedParents
from depfuse.merge.average import average
from depfuse.merge.effective_shares import effective_shares
from depfuse.merge.fisher import fisher_information
from depfuse.merge.shares import Shares

__all__ = ["AlignedParents", "Shares", "average", "effective_shares", "fisher_information"]
