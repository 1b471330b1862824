from .architecture import NETWORKS, with_classes
from .inputs import check_input, example_shape
from .registry import build_network

__all__ = ["NETWORKS", "build_network", "check_input", "example_shape", "with_classes"]
