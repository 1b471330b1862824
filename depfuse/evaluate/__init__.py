"""Score networks, alone, in an ensemble, along the path between parents."""

from depfuse.evaluate.scores import (
    CERTAIN,
    Difference,
    PathPoint,
    Scores,
    barrier,
    difference,
    evaluate,
    evaluate_ensemble,
    evaluate_path,
    evaluate_together,
    evaluate_with_ensemble,
    most_frequent,
    path_alphas,
)

__all__ = [
    "CERTAIN",
    "Difference",
    "PathPoint",
    "Scores",
    "barrier",
    "difference",
    "evaluate",
    "evaluate_ensemble",
    "evaluate_path",
    "evaluate_together",
    "evaluate_with_ensemble",
    "most_frequent",
    "path_alphas",
]
