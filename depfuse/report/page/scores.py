"""What the page tells of a fusion besides its fields: the best parent, what the verdict keeps, the recipe's news."""

from __future__ import annotations

from functools import cache
from typing import Any

from depfuse.recipe import Recipe
from depfuse.report.schema import FusionReport, NetworkScores, ScoreValues
from depfuse.report.tables import short_names
from depfuse.report.verdict import Kept, kept


def best_parent(report: FusionReport) -> NetworkScores | None:
    """The parent that is right most often."""
    return max(report.parents, key=lambda parent: parent.accuracy, default=None)


def best_naive(report: FusionReport) -> ScoreValues:
    """The better of the two plain averages."""
    return max(report.naive, report.naive_renorm, key=lambda scores: scores.accuracy)


def kept_scores(report: FusionReport) -> tuple[Kept, ScoreValues] | None:
    """What the verdict says to keep, and its scores; None where either is not known."""
    what = kept(report.verdict)
    head = max(report.heads, key=lambda scores: scores.accuracy, default=None)
    scores = {
        "child": report.child,
        "parent": best_parent(report),
        "refitted parent": head,
        "trained parent": report.trained_parent,
        "ensemble": report.ensemble,
    }
    found = None if what is None else scores[what]
    return None if what is None or found is None else (what, found)


def single_networks(report: FusionReport) -> list[tuple[str, ScoreValues]]:
    """Each network of a fusion that can be kept alone, and what it is; what needs least work comes first."""
    names = short_names(report.parents)
    rows: list[tuple[str, ScoreValues]] = [
        (f"parent {name}", parent) for name, parent in zip(names, report.parents, strict=True)
    ]
    rows.append(("the child", report.child))
    rows += [(f"parent {name} with its head refitted", head) for name, head in zip(names, report.heads, strict=False)]
    if report.trained_parent is not None:
        rows.append(("a parent trained as long as the child", report.trained_parent))
    return rows


def changed_settings(recipe: dict[str, Any]) -> dict[str, Any]:
    """The settings of a recipe that differ from the default ones, or that these do not know."""
    usual = _usual()
    return {name: value for name, value in recipe.items() if name not in usual or usual[name] != value}


def settings_text(settings: dict[str, Any]) -> str:
    """`refit=ridge, seed=3`."""
    return ", ".join(f"{name}={setting(value)}" for name, value in settings.items())


def setting(value: Any) -> str:
    """One setting in a few characters."""
    if isinstance(value, (list, tuple)):
        return ",".join(setting(part) for part in value)
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


@cache
def _usual() -> dict[str, Any]:
    return Recipe().model_dump(mode="json")
