"""The reports and studies below a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from depfuse.errors import ReportError
from depfuse.report.matching import MatchReport
from depfuse.report.reading import as_report, read_fields, read_report
from depfuse.report.schema import EvaluationReport, FusionReport, PathReport
from depfuse.report.study import STUDY, StudyReport

AnyReport: TypeAlias = FusionReport | PathReport | MatchReport | EvaluationReport | StudyReport


@dataclass(frozen=True)
class Run:
    """A report with its name: its path below the folder, `a/b` for `a/b/report.json` or `a/b/study.json`."""

    name: str
    report: AnyReport


@dataclass(frozen=True)
class Broken:
    """A report that cannot be read: its path below the folder, and the reason in a sentence."""

    name: str
    reason: str


@dataclass(frozen=True)
class Runs:
    """All reports below a folder, in the order of their paths."""

    folder: Path
    runs: tuple[Run, ...]
    broken: tuple[Broken, ...]


def find_runs(folder: Path) -> Runs:
    """Read every report below a folder: each .json file that a command wrote as its report, or `depfuse tune`.

    JSON of other kinds is skipped, unless its name says that it is a report or a study. A file that is not JSON at
    all counts as a broken report.

    Raises
    ------
    ReportError
        When the folder is not there, or holds no report that can be read.
    """
    if not folder.is_dir():
        what = "is a file: give the folder that holds the reports" if folder.exists() else "does not exist"
        raise ReportError(f"{folder} {what}")
    runs, broken = [], []
    for path in sorted(_files(folder)):
        try:
            report = _read(path)
        except ReportError as error:
            if not _of_another_kind(path):
                name = str(path.relative_to(folder))
                broken.append(Broken(name, str(error).replace(str(path), name, 1)))
        else:
            runs.append(Run(_name(path.relative_to(folder)), report))
    if not runs:
        if broken:
            none = "its only report cannot" if len(broken) == 1 else f"none of its {len(broken)} reports can"
            raise ReportError(f"{folder}: {none} be read: {broken[0].reason}")
        raise ReportError(
            f"{folder} holds no report: `depfuse fuse`, `path`, `match` and `eval` write one where they are told to,"
            f" and `depfuse tune` writes {STUDY}"
        )
    return Runs(folder, tuple(runs), tuple(broken))


def _files(folder: Path) -> Iterator[Path]:
    """List all JSON files below a folder except hidden ones: copies that editors and notebooks keep."""
    files = (path for path in folder.rglob("*.json") if path.is_file())
    return (path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _read(path: Path) -> AnyReport:
    # These lie above `read_report`, which knows the kinds that fusions and evaluations write.
    fields = read_fields(path)
    if path.name == STUDY or "trials" in fields:
        return as_report(path, fields, StudyReport)
    return as_report(path, fields, MatchReport) if "matchings" in fields else read_report(path)


def _of_another_kind(path: Path) -> bool:
    """Tell whether a file is valid JSON, and neither named nor shaped like a report."""
    if "report" in path.name.lower() or path.name == STUDY:
        return False
    try:
        fields = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return not (isinstance(fields, dict) and "environment" in fields)


def _name(path: Path) -> str:
    return str(path.parent if path.name in ("report.json", STUDY) and path.parent.name else path)
