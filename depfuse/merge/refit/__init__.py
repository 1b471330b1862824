"""Refitting: layer by layer, the child's weights solved for what the parents' do."""

from depfuse.merge.refit.hints import Hints
from depfuse.merge.refit.layerwise import METHODS, refit_head, refit_layers

__all__ = ["METHODS", "Hints", "refit_head", "refit_layers"]
