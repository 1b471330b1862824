from .environment import describe_environment
from .reading import read_report
from .schema import (
    Barrier,
    Environment,
    EvaluationReport,
    FamilyRow,
    FusionReport,
    GroupsSummary,
    MethodPath,
    NetworkScores,
    PathReport,
    PathRow,
    ScoreValues,
    Seconds,
    SelfTrainingSummary,
    SharesSummary,
)
from .sentences import barrier_sentence, decisions, loading_lines, sentence_of_errors

__all__ = [
    "Barrier",
    "Environment",
    "EvaluationReport",
    "FamilyRow",
    "FusionReport",
    "GroupsSummary",
    "MethodPath",
    "NetworkScores",
    "PathReport",
    "PathRow",
    "ScoreValues",
    "Seconds",
    "SelfTrainingSummary",
    "SharesSummary",
    "barrier_sentence",
    "decisions",
    "describe_environment",
    "loading_lines",
    "read_report",
    "sentence_of_errors",
]
