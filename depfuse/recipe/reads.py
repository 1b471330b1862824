"""Conditions between sections: settings that are read only if another section has some value.

Settings that one alternative alone reads are its own fields; this table holds the rest. The smallest example:

    {"train.learning_rate": ({"train.distil": Above(0)}, {"train.finetune": Above(0)})}

means that the learning rate is read if the child is distilled or fine-tuned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from depfuse.recipe.renorms import RENORMS, Renorm
from depfuse.recipe.solvers import SOLVERS, facts
from depfuse.recipe.starts import STARTS


@dataclass(frozen=True)
class Above:
    """All numbers above `least`."""

    least: float

    def __contains__(self, value: object) -> bool:
        return isinstance(value, (int, float)) and value > self.least

    def __str__(self) -> str:
        return f"above {self.least:g}"


Values = dict[str, Any]  # path -> value
Case = Mapping[str, "tuple[Any, ...] | Above"]  # other settings -> the values that they have, all of them

_LOOKING = ("activations", "mixture")
_CHILD: Case = {"goal": ("child",)}


def _watched_by(what: str) -> tuple[Case, ...]:
    """List the cases in which activations are compared: by solvers, and by their starts."""
    solvers = tuple(name for name in SOLVERS if what in facts(name).watches and name != "sinkhorn-implicit")
    starts = tuple(name for name in solvers if name in STARTS and "activations" in facts(name).criteria)
    implicit: Case = {"align.solver": ("sinkhorn-implicit",), "align.solver.start": ("none", "activations", *starts)}
    return {"align.solver": solvers}, implicit


def _renewing() -> tuple[str, ...]:
    return tuple(name for name, kind in RENORMS.items() if issubclass(kind, Renorm) and kind.images and name != "auto")


def cases_of(path: str) -> tuple[Case, ...]:
    """Return the cases in which a setting that exists is read; none where it always is."""
    return _table(tuple(SOLVERS), tuple(RENORMS)).get(path, ())


@cache
def _table(_solvers: tuple[str, ...], _renorms: tuple[str, ...]) -> dict[str, tuple[Case, ...]]:
    restarting = tuple(name for name in SOLVERS if "restarts" in SOLVERS[name].model_fields and name != "emd")
    restarts: tuple[Case, ...] = (
        {"align.solver": ("emd",), "align.criterion": ("weights", "mixture")},
        {"align.solver": restarting},
    )
    by_reference: Case = {"align.through": ("reference",)}
    return {
        "align.criterion.distance": _watched_by("distance"),
        "align.criterion.taps": _watched_by("taps"),
        "align.solver.restarts": restarts,
        "align.solver.start": (by_reference,),
        "align.solver.start.distance": ({**by_reference, "align.criterion": ("weights",)},),
        "align.solver.start.taps": ({**by_reference, "align.criterion": ("weights",)},),
        "align.through.restarts": ({"align.criterion": _LOOKING},),
        "align.choose": ({"align.criterion": ("activations",)}, *restarts),  # where there are several to choose from
        "refit.targets": (_CHILD,),  # the best of a family has its own
        "refit.steps": (_CHILD,),
        "refit.augment": ({"refit.steps": Above(0), **_CHILD},),
        "calibration.augment": (
            {"renorm": ("auto",), "refit": ("auto", "none", "regmean", "least-squares"), "goal": ("child",)},
            {"renorm": _renewing(), "goal": ("child",)},
            {"teach.renorm": ("reset",)},
        ),
        "calibration.mirror": (
            {"refit.augment": (True,), "refit.steps": Above(0), **_CHILD},
            {"goal.augment": (True,)},
            {"train.distil": Above(0)},
            {"train.self_training": Above(0)},
            {"train.finetune": Above(0)},
            {"calibration.augment": (True,)},
        ),
        "teach.label_weight": ({"teach.labelled": Above(0)},),
        "train.learning_rate": ({"train.distil": Above(0)}, {"train.finetune": Above(0)}),
    }


def is_read(path: str, values: Mapping[str, Any]) -> bool:
    """Tell whether a setting is read, given the values of all settings."""
    cases = cases_of(path)
    return path in values and (not cases or any(holds(case, values) for case in cases))


def holds(case: Case, values: Mapping[str, Any]) -> bool:
    """Tell whether all settings of a case have one of its values."""
    return all(path in values and values[path] in allowed for path, allowed in case.items())


def unmet(cases: Sequence[Case], values: Mapping[str, Any]) -> str:
    """Describe which settings would have to change, in the case that needs the fewest."""
    joined = _joined(cases)
    other = [[path for path in case if path in values and values[path] not in case[path]] for case in joined]
    wrong = [paths or [path for path in case if path not in values] for paths, case in zip(other, joined, strict=True)]
    nearest = min(range(len(joined)), key=lambda number: (not other[number], len(wrong[number]) or len(joined) + 9))
    case = joined[nearest]
    now = {path: f", not {value}" for path, value in values.items()}
    return " and ".join(f"{path} {_written(case[path])}{now.get(path, '')}" for path in wrong[nearest])


def _joined(cases: Sequence[Case]) -> list[Case]:
    """Merge cases that differ by the values of one setting."""
    joined: list[dict[str, Any]] = []
    for case in cases:
        for earlier in joined:
            differing = [path for path in case if earlier.get(path) != case[path]]
            if earlier.keys() == case.keys() and len(differing) == 1 and isinstance(earlier[differing[0]], tuple):
                more = case[differing[0]]
                if isinstance(more, tuple):
                    earlier[differing[0]] = (
                        *earlier[differing[0]],
                        *(v for v in more if v not in earlier[differing[0]]),
                    )
                    break
        else:
            joined.append(dict(case))
    return [*joined]


def _written(allowed: tuple[Any, ...] | Above) -> str:
    if isinstance(allowed, Above):
        return str(allowed)
    *most, last = [str(value) for value in allowed]
    return f"{', '.join(most)} or {last}" if most else last
