"""Old names of settings, as in flat recipes and cards of earlier versions -> their paths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OLD: dict[str, tuple[str, ...]] = {
    "criterion": ("align.criterion",),
    "solver": ("align.solver",),
    "distance": ("align.criterion.distance", "align.solver.start.distance"),
    "taps": ("align.criterion.taps", "align.solver.start.taps"),
    "mixture": ("align.criterion.share",),
    "choose": ("align.choose",),
    "regularisation": ("align.solver.regularisation",),
    "strictness": ("align.solver.strictness",),
    "masses": ("align.solver.masses",),
    "width_of": ("merge.width_of",),
    "restarts": ("align.solver.restarts", "align.through.restarts"),
    "start": ("align.solver.start",),
    "structure": ("align.solver.structure", "align.solver.start.structure"),
    "iterations": ("align.solver.iterations", "align.solver.start.iterations", "align.through.iterations"),
    "weights": ("merge.weights",),
    "weights_by": ("merge.weights_by",),
    "average": ("merge.average",),
    "universe": ("align.through",),
    "reference": ("align.through.parent",),
    "order": ("align.order",),
    "keep_worst": ("merge.keep_worst",),
    "keep_first": ("merge.keep_first",),
    "keep_last": ("merge.keep_last",),
    "targets": ("refit.targets", "goal.targets"),
    "refit_steps": ("refit.steps", "goal.steps"),
    "augment": ("refit.augment", "goal.augment"),
    "augment_statistics": ("calibration.augment",),
    "parents_renorm": ("teach.renorm",),
    "joint_head": ("teach.head",),
    "labelled": ("teach.labelled",),
    "distil": ("train.distil",),
    "finetune": ("train.finetune",),
    "learning_rate": ("train.learning_rate",),
    "calibration": ("calibration.images",),
    "batch_size": ("calibration.batch_size",),
}
_THROUGH = {True: "universe", False: "reference"}


def in_current_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Convert what only old recipes contain: parents counted from 0, `universe` as a boolean, and a polish.

    Raises
    ------
    ValueError
        The recipe has a polish, which no longer exists.
    """
    current = dict(settings)
    if current.pop("parents_from", 1) == 0:
        current |= {name: current[name] + 1 for name in ("reference", "order") if isinstance(current.get(name), int)}
    polish, best = current.pop("polish", None), current.get("goal") == "best"
    if polish not in (None, best):
        raise ValueError(
            "goal best always ends with a step towards the ensemble: leave out polish"
            if best
            else f"there is no polish any more ({polish}): refit ridge gains more; leave it out"
        )
    if isinstance(current.get("universe"), bool):
        current["universe"] = _THROUGH[current["universe"]]
    return current


def is_old(name: str, value: Any) -> bool:
    """Tell whether a name is meant as an old one: `calibration` is a section too."""
    return name in OLD and not isinstance(value, Mapping) and not hasattr(value, "model_fields")


def read_old(name: str, settings: Mapping[str, Any]) -> Any:
    """Read a setting by its old name among the values by path.

    Raises
    ------
    AttributeError
        The name is unknown, or nothing reads that setting in this recipe.
    """
    path = next((path for path in OLD.get(name, ()) if path in settings), None)
    if path is None:
        raise AttributeError(f"a recipe has no {name}" + (" where nothing reads it" if name in OLD else ""))
    return settings[path] == _THROUGH[True] if name == "universe" else settings[path]
