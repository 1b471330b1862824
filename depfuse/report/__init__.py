"""What a run tells afterwards: `report.json`, tables, plots, and one honest sentence."""

from depfuse.report.environment import describe_environment
from depfuse.report.schema import (
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
    PolishSummary,
    ReportError,
    ScoreValues,
    Seconds,
    SharesSummary,
    read_report,
)
from depfuse.report.verdict import barrier_sentence, kept, verdict

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
    "PolishSummary",
    "ReportError",
    "ScoreValues",
    "Seconds",
    "SharesSummary",
    "barrier_sentence",
    "describe_environment",
    "kept",
    "read_report",
    "verdict",
]
