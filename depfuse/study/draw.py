"""The space of recipes: which parameters a search draws, one after another, as the table beside `Recipe` says."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from optuna.trial import BaseTrial

from depfuse.errors import RecipeError
from depfuse.recipe import Recipe
from depfuse.study.search_space import SEARCHED, Between, OneOf, Ratios, Searched


@dataclass(frozen=True)
class Parameter:
    """One parameter, as a trial draws it.

    Attributes
    ----------
    name
        Of the setting, with what tells it from others of the same setting: `regularisation[cca]`.
    low, high, log
        Of a number.
    options
        Of a choice; empty for a number.
    default
        Its value in the recipe as it stands, or the nearest that it can have.
    """

    name: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    options: tuple[Any, ...] = ()
    default: Any = None

    def draw(self, trial: BaseTrial) -> Any:
        """Let a trial suggest its value."""
        if self.options:
            return trial.suggest_categorical(self.name, self.options)
        if isinstance(self.low, int):
            return trial.suggest_int(self.name, self.low, int(self.high), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)


class Space:
    """All recipes that a search chooses from.

    Parameters
    ----------
    parents
        How many.
    kept
        Settings that are not searched: every recipe has them.
    model, declared
        The recipe, and which of its settings are searched.

    Raises
    ------
    RecipeError
        All settings that could be searched are kept.
    """

    def __init__(
        self,
        parents: int,
        kept: Mapping[str, Any],
        *,
        model: type[Recipe] = Recipe,
        declared: Mapping[str, tuple[Searched, ...]] = SEARCHED,
    ) -> None:
        self._parents, self._kept, self._model = parents, dict(kept), model
        self._declared = {name: own for name, own in declared.items() if name not in kept}
        if not self._declared:
            raise RecipeError("nothing is left to search: leave out some settings, or take them from no --recipe")

    def suggest(self, trial: BaseTrial) -> dict[str, Any]:
        """Settings of a recipe as a trial draws them: only those that are used, given the others."""
        return self._settle(lambda parameter: parameter.draw(trial))

    def defaults(self) -> dict[str, Any]:
        """Names and values of the parameters of the recipe that has defaults but for what is kept."""
        values: dict[str, Any] = {}

        def note(parameter: Parameter) -> Any:
            values[parameter.name] = parameter.default
            return parameter.default

        self._settle(note)
        return values

    def recipe(self, settings: Mapping[str, Any]) -> Recipe:
        """The recipe with these settings and those that are kept; a `RecipeError` where it is contradictory."""
        return self._model.with_read({**self._kept, **settings}, keep=settings)

    def _settle(self, ask: Callable[[Parameter], Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        settled = {name: field.default for name, field in self._model.model_fields.items()} | self._kept
        waiting = dict(self._declared)
        while waiting:
            # A setting comes after those that say whether it is used.
            name = next(name for name, own in waiting.items() if not _named(own) & (waiting.keys() - {name}))
            chosen = next((own for own in waiting.pop(name) if own.holds(settled)), None)
            if chosen is not None:
                found[name] = settled[name] = self._value(name, chosen, settled[name], ask)
        return found

    def _value(self, name: str, declared: Searched, default: Any, ask: Callable[[Parameter], Any]) -> Any:
        named = f"{name}[{declared.label}]" if declared.label else name
        if isinstance(declared, OneOf):
            given = declared.options() if callable(declared.options) else declared.options
            options = given or _possible(self._model, name)
            return ask(Parameter(named, options=options, default=default if default in options else options[0]))
        if isinstance(declared, Between):
            nearest = min(max(default, declared.low), declared.high)
            return ask(Parameter(named, declared.low, declared.high, declared.log, default=nearest))
        assert isinstance(declared, Ratios)
        others = [
            ask(Parameter(f"{named}[{number}]", 1.0 / declared.most, declared.most, log=True, default=1.0))
            for number in range(2, self._parents + 1)
        ]
        total = 1.0 + sum(others)
        return tuple(share / total for share in (1.0, *others))


def _named(declared: tuple[Searched, ...]) -> set[str]:
    """The settings on which it depends whether another is used."""
    return {name for own in declared for case in own.when for name in case}


def _possible(model: type[Recipe], name: str) -> tuple[Any, ...]:
    """All values of a setting that is one of a few."""
    kind = model.model_fields[name].annotation
    return (False, True) if kind is bool else typing.get_args(kind)
