"""Figures of a fusion that are not fields of its report: best parent and average, settings that were changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from depfuse.recipe import Recipe
from depfuse.recipe.arrange import unusual
from depfuse.report.schema import FusionReport, NetworkScores, ScoreValues
from depfuse.report.tables import short_names


def best_parent(report: FusionReport) -> NetworkScores | None:
    """Return the parent with the highest score; without labels, the one that agrees best with the ensemble."""
    return max(report.parents, key=lambda parent: parent.value, default=None)


def best_naive(report: FusionReport) -> ScoreValues:
    """Return the better of the two plain averages."""
    return max(report.naive, report.naive_renorm, key=lambda scores: scores.value)


def single_networks(report: FusionReport) -> list[tuple[str, ScoreValues]]:
    """List the networks of a fusion that have a file, with what they are; of equals the first is to be kept."""
    names = short_names(report.parents)
    rows: list[tuple[str, ScoreValues]] = [("the child", report.child)]
    rows += [(f"parent {name}", parent) for name, parent in zip(names, report.parents, strict=True)]
    trained = None if report.advice is None else report.advice.best("trained parent")
    if report.trained_parent is not None and trained is not None and trained.held:
        rows.append(("a parent trained as long as the child", report.trained_parent))
    return rows


def stems(networks: Sequence[NetworkScores]) -> list[str]:
    """Shorten files to names without folders and endings, where these differ."""
    names = short_names(networks)
    short = [Path(name).stem for name in names]
    return short if len(set(short)) == len(names) else names


def changed_settings(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a recipe that differ from the defaults or that these lack.

    The usual value of a setting that the defaults leave open is no difference either.
    """
    settings = unusual(Recipe, recipe)
    return {
        path: value
        for path, value in settings.items()
        if path not in ("preset", "parents_from") and value not in USUALLY.get(path, ()) and not _alike(value)
    }


def _alike(value: Any) -> bool:
    """Tell whether all shares are equal."""
    return isinstance(value, (list, tuple)) and len(set(value)) == 1


def settings_text(settings: dict[str, Any]) -> str:
    """Write `refit=ridge, seed=3`."""
    return ", ".join(f"{name}={setting(value)}" for name, value in settings.items())


def setting(value: Any) -> str:
    """Write a setting in a few characters."""
    if isinstance(value, (list, tuple)):
        return ",".join(setting(part) for part in value)
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# What is left open becomes.
USUALLY = {
    "align.through": (False,),
    "align.through.parent": (1,),
    "align.order": (1,),
    "teach.renorm": ("none",),
    "teach.head": ("none",),
    "renorm": ("reset",),
    "polish": (None, False),
}
