"""Read reports back from their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from depfuse.errors import ReportError
from depfuse.report.schema import EvaluationReport, FusionReport, PathReport

Report = TypeVar("Report", bound=BaseModel)
_ANY_OBJECT = TypeAdapter(dict[str, Any])


def read_report(path: Path) -> FusionReport | PathReport | EvaluationReport:
    """Read a `report.json` back; the kind follows from its fields.

    Raises
    ------
    ReportError
        When the file cannot be read or is no report; the first wrong field is named.
    """
    fields = read_fields(path)
    if "networks" in fields:
        return as_report(path, fields, EvaluationReport)
    return as_report(path, fields, PathReport if "path" in fields else FusionReport)


def read_fields(path: Path) -> dict[str, Any]:
    """Read the object that a report's file holds, whatever its kind; raise `ReportError` where there is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ReportError(f"{path}: the report cannot be read: {error}") from None
    try:
        return _ANY_OBJECT.validate_json(text)
    except ValidationError as error:
        raise _no_report(path, error) from None


def as_report(path: Path, fields: dict[str, Any], kind: type[Report]) -> Report:
    """Validate the fields of a report of a kind; a `ReportError` names the file and the first wrong field."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise _no_report(path, error) from None


def _no_report(path: Path, error: ValidationError) -> ReportError:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "the file"
    return ReportError(f"{path} is no report of depfuse: {where}: {first['msg']}")
