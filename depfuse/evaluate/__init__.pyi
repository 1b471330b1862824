from .agreement import evaluate_agreement
from .evaluation import (
    Members,
    evaluate,
    evaluate_all,
    evaluate_ensemble,
    evaluate_together,
    evaluate_with_ensemble,
)
from .path import evaluate_path
from .scores import (
    CERTAIN,
    Agreement,
    Difference,
    Measure,
    PathPoint,
    Scores,
    barrier,
    difference,
    path_alphas,
    standard_error,
    trivial,
)

__all__ = [
    "CERTAIN",
    "Agreement",
    "Difference",
    "Measure",
    "Members",
    "PathPoint",
    "Scores",
    "barrier",
    "difference",
    "evaluate",
    "evaluate_agreement",
    "evaluate_all",
    "evaluate_ensemble",
    "evaluate_path",
    "evaluate_together",
    "evaluate_with_ensemble",
    "path_alphas",
    "standard_error",
    "trivial",
]
