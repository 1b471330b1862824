from .federated import Aggregated, aggregate

__all__ = ["Aggregated", "aggregate"]
