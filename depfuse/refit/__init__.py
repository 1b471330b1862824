"""Refitting: solve the child's weights, layer by layer, for outputs from those of the parents."""

from depfuse.refit.layerwise.layers import can_be_refitted, refit_heads, refit_layers
from depfuse.refit.second_order.schedule import Schedule
from depfuse.refit.second_order.session import Session
from depfuse.refit.second_order.training import NaturalGradientTraining

__all__ = ["NaturalGradientTraining", "Schedule", "Session", "can_be_refitted", "refit_heads", "refit_layers"]
