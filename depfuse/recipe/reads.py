"""Which settings of a recipe are read, given the others: one table.

A setting that nothing reads is refused where the user says it, and never searched. The smallest example:

    READ = {"learning_rate": ({"distil": Above(0)}, {"finetune": Above(0)})}

says that the learning rate is read where the child is distilled or fine-tuned. What a solver reads stands with the
solver (`depfuse.align.solvers.SOLVERS`). A setting without a line is always read.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from depfuse.align.solvers import SOLVERS
from depfuse.renorm.registry import METHODS


@dataclass(frozen=True)
class Above:
    """All numbers above one."""

    least: float

    def __contains__(self, value: float) -> bool:
        return value > self.least

    def __str__(self) -> str:
        return f"above {self.least:g}"


Case = Mapping[str, "tuple[Any, ...] | Above"]  # other settings -> the values that they have, all of them


def _by_solver(setting: str) -> tuple[Case, ...]:
    """Where solvers read a setting; those that do so in the same cases together."""
    found: list[tuple[Mapping[str, Any], list[str]]] = []
    for name, solver in SOLVERS.items():
        for case in solver.reads.get(setting, ()):
            same = next((names for known, names in found if known == case), None)
            if same is None:
                found.append((case, [name]))
            else:
                same.append(name)
    return tuple({"solver": tuple(names), **case} for case, names in found)


def _also_at_the_start(setting: str) -> tuple[Case, ...]:
    """The same, and where the solver reads it that another one starts from."""
    own = _by_solver(setting)
    starting = tuple(name for name, solver in SOLVERS.items() if "start" in solver.reads)
    return (*own, *({"solver": starting, "start": case["solver"]} for case in own))


_RIDGE = ("auto", "ridge")
_RENEWING = tuple(name for name, method in METHODS.items() if method.images)

READ: dict[str, tuple[Case, ...]] = {
    "distance": _by_solver("distance"),
    "taps": _by_solver("taps"),
    "mixture": ({"criterion": ("mixture",)},),
    "choose": ({"criterion": ("activations",)}, *_by_solver("restarts")),  # where there are several to choose from
    "regularisation": _by_solver("regularisation"),
    "strictness": _by_solver("strictness"),
    "masses": _by_solver("masses"),
    "restarts": (*_by_solver("restarts"), {"universe": (True,), "criterion": ("activations", "mixture")}),
    "start": tuple({**case, "universe": (False,)} for case in _by_solver("start")),
    "structure": _also_at_the_start("structure"),
    "iterations": (*_also_at_the_start("iterations"), {"universe": (True,)}),
    "reference": ({"universe": (False,)},),
    "targets": ({"refit": _RIDGE}, {"goal": ("best",)}),
    "refit_steps": ({"refit": _RIDGE}, {"goal": ("best",)}),
    "augment": ({"refit": _RIDGE, "refit_steps": Above(0)}, {"goal": ("best",)}),
    "augment_statistics": (
        {"renorm": ("auto",), "refit": ("auto", "none", "regmean", "least-squares"), "goal": ("child",)},
        {"renorm": _RENEWING, "goal": ("child",)},
        {"parents_renorm": ("reset",)},
    ),
    "learning_rate": ({"distil": Above(0)}, {"finetune": Above(0)}),
}


def is_read(setting: str, settings: Mapping[str, Any]) -> bool:
    """Whether anything reads a setting, given the values of all."""
    return setting not in READ or any(_holds(case, settings) for case in READ[setting])


def may_be_read(setting: str, fixed: Mapping[str, Any]) -> bool:
    """Whether anything reads a setting for some values of those that are not fixed."""
    return setting not in READ or any(
        all(fixed[name] in allowed for name, allowed in case.items() if name in fixed) for case in READ[setting]
    )


def why_not_read(setting: str, settings: Mapping[str, Any]) -> str:
    """What would have to be otherwise for a setting to be read, in the case that is nearest."""
    cases = [[name for name in case if settings[name] not in case[name]] for case in READ[setting]]
    nearest = min(range(len(cases)), key=lambda number: len(cases[number]))
    case = READ[setting][nearest]
    return " and ".join(f"{name} {_written(case[name])}, not {settings[name]}" for name in cases[nearest])


def only_read(settings: Mapping[str, Any], defaults: Mapping[str, Any], keep: Collection[str] = ()) -> dict[str, Any]:
    """The settings without those that nothing reads, but for some that are kept whether or not they are read."""
    found = dict(settings)
    while unread := [name for name in found if name not in keep and not is_read(name, {**defaults, **found})]:
        for name in unread:
            del found[name]
    return found


def _holds(case: Case, settings: Mapping[str, Any]) -> bool:
    return all(settings[name] in allowed for name, allowed in case.items())


def _written(allowed: tuple[Any, ...] | Above) -> str:
    if isinstance(allowed, Above):
        return str(allowed)
    *most, last = [str(value) for value in allowed]
    return f"{', '.join(most)} or {last}" if most else last
