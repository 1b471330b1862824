"""Alignment: which channel of one parent is which channel of another."""

from depfuse.align.aligner import Judge, align
from depfuse.align.coupling import Coupling, Couplings, apply_couplings, compose, invert

__all__ = ["Coupling", "Couplings", "Judge", "align", "apply_couplings", "compose", "invert"]
