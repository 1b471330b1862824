"""Refitting: layer by layer, the child's weights solved for what the parents' do."""

from depfuse.merge.refit.layerwise import METHODS, can_be_refitted, refit_head, refit_layers
from depfuse.merge.refit.together import Together
from depfuse.merge.refit.training import NaturalGradientTraining

__all__ = ["METHODS", "NaturalGradientTraining", "Together", "can_be_refitted", "refit_head", "refit_layers"]
