from .advice import Advice, Contender, SameStart, advise
from .comparison import advise_on
from .environment import describe_environment
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
    ReportError,
    ScoreValues,
    Seconds,
    SharesSummary,
    read_report,
)
from .verdict import barrier_sentence, loading_lines, verdict

__all__ = [
    "Advice",
    "Barrier",
    "Contender",
    "Environment",
    "EvaluationReport",
    "FamilyRow",
    "FusionReport",
    "GroupsSummary",
    "MethodPath",
    "NetworkScores",
    "PathReport",
    "PathRow",
    "ReportError",
    "SameStart",
    "ScoreValues",
    "Seconds",
    "SharesSummary",
    "advise",
    "advise_on",
    "barrier_sentence",
    "describe_environment",
    "loading_lines",
    "read_report",
    "verdict",
]
