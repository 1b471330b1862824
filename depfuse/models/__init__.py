"""Built-in networks, and the registry that turns an architecture's name into a network."""

from depfuse.models.architecture import NETWORKS, with_classes
from depfuse.models.inputs import check_input, example_shape
from depfuse.models.registry import build_network

__all__ = ["NETWORKS", "build_network", "check_input", "example_shape", "with_classes"]
