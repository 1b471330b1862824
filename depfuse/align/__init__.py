"""Alignment: match the channels of one parent to those of another."""

from depfuse.align.aligner import align
from depfuse.align.coupling import Coupling, Couplings, apply_couplings, compose, invert
from depfuse.align.judge import Judge
from depfuse.align.solution import Alignment

__all__ = ["Alignment", "Coupling", "Couplings", "Judge", "align", "apply_couplings", "compose", "invert"]
