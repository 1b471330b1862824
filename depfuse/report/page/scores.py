"""What the page tells of a fusion besides its fields: the best parent and average, the recipe's news."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from depfuse.recipe import Recipe
from depfuse.report.schema import FusionReport, NetworkScores, ScoreValues
from depfuse.report.tables import short_names


def best_parent(report: FusionReport) -> NetworkScores | None:
    """The parent that is right most often."""
    return max(report.parents, key=lambda parent: parent.accuracy, default=None)


def best_naive(report: FusionReport) -> ScoreValues:
    """The better of the two plain averages."""
    return max(report.naive, report.naive_renorm, key=lambda scores: scores.accuracy)


def single_networks(report: FusionReport) -> list[tuple[str, ScoreValues]]:
    """Each network of a fusion that lies in a file, and what it is; of equals the first is to be kept."""
    names = short_names(report.parents)
    rows: list[tuple[str, ScoreValues]] = [("the child", report.child)]
    rows += [(f"parent {name}", parent) for name, parent in zip(names, report.parents, strict=True)]
    trained = None if report.advice is None else report.advice.best("trained parent")
    if report.trained_parent is not None and trained is not None and trained.held:
        rows.append(("a parent trained as long as the child", report.trained_parent))
    return rows


def stems(networks: Sequence[NetworkScores]) -> list[str]:
    """Names of files without folders and endings, as far as that tells them apart."""
    names = short_names(networks)
    short = [Path(name).stem for name in names]
    return short if len(set(short)) == len(names) else names


def changed_settings(recipe: dict[str, Any]) -> dict[str, Any]:
    """The settings of a recipe that differ from the default ones, or that these do not know.

    What the defaults leave open and usually become is no difference either.
    """
    usual = _usual()
    return {
        name: value
        for name, value in recipe.items()
        if name not in usual or (usual[name] != value and value not in USUALLY.get(name, ()) and not _alike(value))
    }


def _alike(value: Any) -> bool:
    """Whether it is one equal share per parent."""
    return isinstance(value, (list, tuple)) and len(set(value)) == 1


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
    return f"{value:.4g}" if isinstance(value, float) else str(value)


USUALLY = {
    "reference": (1,),
    "order": (1,),
    "parents_renorm": ("none",),
    "joint_head": ("none",),
    "renorm": ("reset",),
}  # what is left open becomes


@cache
def _usual() -> dict[str, Any]:
    return Recipe().model_dump(mode="json")
