"""The page as a whole."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from depfuse import __version__
from depfuse.io.atomic_files import replacing
from depfuse.report.matching import MatchReport
from depfuse.report.page.best import best_sentences, caution
from depfuse.report.page.fusion import fusion_details, fusion_summary
from depfuse.report.page.markup import Html, element, join
from depfuse.report.page.matching import match_details, match_summary
from depfuse.report.page.numbers import unbroken
from depfuse.report.page.overview import Entry, evaluations_table, fusions_table, matchings_table, studies_table
from depfuse.report.page.parts import environment_section, section
from depfuse.report.page.runs import Broken, Runs
from depfuse.report.page.study import study_details, study_summary
from depfuse.report.page.tables import plain_table
from depfuse.report.schema import EvaluationReport, FusionReport
from depfuse.report.study import StudyReport
from depfuse.report.tables import agreement_columns, label_cells, label_heads, short_names
from depfuse.text import counted

_FUSIONS = (
    "Scores are per cent of the test images that are right, unless a measure is named. Gain: the child above the best"
    " parent. Naive: the plain average, renormalised where that is better. Seconds: without evaluation."
)
_AGREEING = (
    "Per cent of the images for which a network predicts the class of the parents' ensemble; no accuracy is known."
    " Naive: the plain average, renormalised where that is better. Seconds: without evaluation."
)
_MATCHINGS = "Correlation of matched channels: the mean over all depths, and what it was before matching."
_SEARCHES = (
    "Each by its best trial, and beside it the first one, with defaults, on training images that neither was calibrated"
    " on"
)
_SEARCHED = f"{_SEARCHES}, whose labels were read. Seconds: of the best fusion."
_SEARCHED_ALIKE = (
    f"{_SEARCHES}. Disagreement: cross-entropy under the parents' ensemble, lower is better. Seconds: of the best"
    " fusion."
)
_EVALUATIONS = "Accuracy in per cent of the test images, or the score that is named; loss in nats."
_EVALUATED_ALIKE = (
    "Per cent of the images for which a network predicts the class of their ensemble; no accuracy is known."
)


def _evaluation_details(report: EvaluationReport) -> Html:
    names = short_names(report.networks)
    if report.labelled:
        heads, cells = label_heads(report.networks[0])[:2], [label_cells(network)[:2] for network in report.networks]
    else:
        heads, cells = agreement_columns(names, report.networks)
    rows = [(name, *own) for name, own in zip(names, cells, strict=True)]
    scores = section("Scores", plain_table("Scores", ["network", *heads], rows))
    rest = environment_section(report.environment, report.command)
    return join([element("div", scores, class_="column"), element("div", rest, class_="column")])


def _evaluation_summary(report: EvaluationReport) -> str:
    return f"{counted(len(report.networks), 'network')} on {report.data}"


@dataclass(frozen=True)
class _Kind:
    """A kind of report: its title, what the columns of its table are, which reports are of it, and how they are shown.

    `labelled` tells those with labels from those without; None takes both.
    """

    title: str
    says: str
    report: type[Any]
    table: Callable[[Any], Html]
    summary: Callable[[Any], str]
    details: Callable[[Any], Html]
    labelled: bool | None = None

    def holds(self, report: object) -> bool:
        """Tell whether a report is of the kind."""
        if not isinstance(report, self.report):
            return False
        return self.labelled is None or self.labelled == report.labelled


_FUSION = FusionReport, fusions_table, fusion_summary, fusion_details
_STUDY = StudyReport, studies_table, study_summary, study_details
_EVALUATION = EvaluationReport, evaluations_table, _evaluation_summary, _evaluation_details

# A further kind of report is one more row.
_KINDS = (
    _Kind("Fusions", _FUSIONS, *_FUSION, labelled=True),
    _Kind("Fusions without labels", _AGREEING, *_FUSION, labelled=False),
    _Kind("Matchings", _MATCHINGS, MatchReport, matchings_table, match_summary, match_details),
    _Kind("Searches", _SEARCHED_ALIKE, *_STUDY, labelled=False),
    _Kind("Searches by labels", _SEARCHED, *_STUDY, labelled=True),
    _Kind("Evaluations", _EVALUATIONS, *_EVALUATION, labelled=True),
    _Kind("Evaluations without labels", _EVALUATED_ALIKE, *_EVALUATION, labelled=False),
)


def build_page(found: Runs) -> str:
    """Build the page that shows all runs: one HTML document with its style, its script and its drawings inside.

    Its Content-Security-Policy lets the browser use these alone. Without the script everything can be read; the
    script sorts and filters the tables and opens the details that a link leads to.
    """
    style, script = _resource("page.css"), _resource("page.js")
    title = f"depfuse: {counted(len(found.runs), 'run')} in {found.folder.resolve().name}"
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; img-src data:;"
        " base-uri 'none'; form-action 'none'"
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("link", rel="icon", href="data:,"),  # or the browser would ask a server for one
        element("title", title),
        element("style", Html(style)),
    )
    body = element(
        "body",
        element("a", "Skip to the runs", href="#runs", class_="skip"),
        _header(found),
        element("main", *_main(found), id="runs", tabindex=-1),
        element("footer", f"Made by depfuse {__version__} from the reports below this folder."),
        element("script", Html(script)),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def write_page(found: Runs, path: Path) -> None:
    """Build the page and write it atomically."""
    text = build_page(found)
    with replacing(path) as unfinished:
        # Names of files may hold what is no Unicode; the page shows a question mark instead.
        unfinished.write_bytes(text.encode("utf-8", errors="replace"))


def _header(found: Runs) -> Html:
    best = [element("p", unbroken(sentence), class_="best") for sentence in best_sentences(found.runs)]
    note = caution(found.runs)
    return element(
        "header",
        element("h1", f"{counted(len(found.runs), 'run')} in {found.folder.resolve().name}"),
        *best,
        None if note is None else element("p", note, class_="quiet"),
        _broken(found.broken),
    )


def _broken(broken: Sequence[Broken]) -> Html | None:
    if not broken:
        return None
    title = f"{counted(len(broken), 'report')} could not be read"
    return element(
        "section",
        element("h2", title),
        element("ul", *(element("li", report.reason) for report in broken)),
        class_="warning",
    )


def _main(found: Runs) -> list[Html]:
    entries = [Entry(f"run-{number}", run.name, run.report) for number, run in enumerate(found.runs, start=1)]
    tables, details, alone = [], [], len(entries) == 1
    for kind in _KINDS:
        of_kind: list[Entry[Any]] = [entry for entry in entries if kind.holds(entry.report)]
        if of_kind:
            says = element("p", kind.says, class_="quiet")
            tables.append(element("section", element("h2", kind.title), says, kind.table(of_kind)))
            details += [
                _details(entry, kind.summary(entry.report), kind.details(entry.report), alone) for entry in of_kind
            ]
    return [_filter(), *tables, element("section", element("h2", "Details"), *details)]


def _details(entry: Entry[Any], line: str, content: Html, opened: bool) -> Html:
    summary = element("summary", element("h3", entry.name), element("span", line, class_="quiet"))
    inside = element("div", content, class_="run")
    return element("details", summary, inside, id=entry.identity, class_="run", open=opened)


def _filter() -> Html:
    field = element("input", type="search", id="filter", autocomplete="off", spellcheck="false")
    label = element("label", "Show runs with all of these words", for_="filter")
    return element("div", label, field, element("p", role="status", id="shown", class_="quiet"), class_="filter")


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _resource(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
