"""Refitting: layer by layer, the child's weights solved for what the parents' do."""

from depfuse.refit.layerwise.layers import METHODS, can_be_refitted, refit_head, refit_layers
from depfuse.refit.second_order.session import Together
from depfuse.refit.second_order.training import NaturalGradientTraining

__all__ = ["METHODS", "NaturalGradientTraining", "Together", "can_be_refitted", "refit_head", "refit_layers"]
