"""Reports of a run: `report.json`, tables, plots, and one honest sentence."""

from depfuse.report.advice import Advice, Contender, SameStart, advise
from depfuse.report.comparison import advise_on
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
    ReportError,
    ScoreValues,
    Seconds,
    SharesSummary,
    read_report,
)
from depfuse.report.verdict import barrier_sentence, loading_lines, verdict

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
