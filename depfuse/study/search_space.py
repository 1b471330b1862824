"""Define the space of recipes: the settings that a search draws, in turn, by their fields (`fields.Search`).

A setting is drawn where it exists and is read, given those drawn before it: `align.solver.regularisation` once the
solver is sinkhorn. A new solver, or a new value of a setting, is searched as soon as it is registered; a new setting if
its field has a search range.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import BaseTrial

from depfuse.errors import RecipeError
from depfuse.recipe import Recipe
from depfuse.recipe.arrange import Place, by_path, may_be_read, places
from depfuse.recipe.fields import Between, OneOf, Ratios, Search, Section, searched
from depfuse.recipe.reads import cases_of, holds, is_read


@dataclass(frozen=True)
class Parameter:
    """One parameter, as a trial draws it.

    Attributes
    ----------
    name
        The path of the setting, with a label where it has several ranges: `align.solver.regularisation[cca]`.
    low, high, log
        Range of a number.
    options
        Values of a choice; empty for a number.
    default
        Its value in the recipe, or the nearest value in the range.
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


@dataclass(frozen=True)
class _SearchedSetting:
    """A setting at one place of the recipe, and what it is drawn from there."""

    place: Place
    search: Search

    @property
    def depends(self) -> set[str]:
        """Paths of the settings that say whether it is drawn, and from what."""
        paths = {*self.place.case, *(path for case in cases_of(self.place.path) for path in case)}
        by = self.search.by if isinstance(self.search, OneOf) else None
        return paths if by is None else paths | {by[0]}

    def options(self, settings: Mapping[str, Any]) -> tuple[str, tuple[Any, ...]]:
        """Return the label of a choice and its options; none where it is not drawn."""
        assert isinstance(self.search, OneOf)
        if self.search.by is not None:
            path, options_by = self.search.by
            return options_by(settings[path])
        return "", self.search.options or self.place.choices

    def is_drawn(self, settings: Mapping[str, Any]) -> bool:
        """Tell whether it exists, is read, and has options."""
        if not holds(self.place.case, settings) or not is_read(self.place.path, {self.place.path: None, **settings}):
            return False
        return not isinstance(self.search, OneOf) or bool(self.options(settings)[1])


def declared(model: type[Section]) -> Iterator[_SearchedSetting]:
    """Yield the settings that are searched, in the model's order; none of what is left open by `auto`."""
    for place in places(model):
        if (search := searched(place.field)) is not None and ("auto",) not in place.case.values():
            yield _SearchedSetting(place, search)


def unsearched(model: type[Recipe], kept_values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that no trial changes: those that are given, and those that are never searched."""
    open_paths = {setting_at.place.path for setting_at in declared(model)}
    return {path: value for path, value in model().settings.items() if path not in open_paths} | dict(kept_values)


class Space:
    """All recipes that a search chooses from.

    Parameters
    ----------
    parents
        Number of parents.
    kept
        The settings that are not searched, with their values in every recipe.
    model
        The recipe.

    Raises
    ------
    RecipeError
        All settings that could be searched are kept.
    """

    def __init__(self, parents: int, kept: Mapping[str, Any], *, model: type[Recipe] = Recipe) -> None:
        self._parents, self._kept, self._model = parents, by_path(kept), model
        self._places = list(places(model))
        self._declared = [setting_at for setting_at in declared(model) if setting_at.place.path not in self._kept]
        fixed = unsearched(model, self._kept)
        if not any(may_be_read(model, setting_at.place.path, fixed) for setting_at in self._declared):
            raise RecipeError("nothing is left to search: leave out some settings, or begin with no preset")
        several: dict[str, list[Search]] = {}
        for setting_at in self._declared:
            several.setdefault(setting_at.place.path, []).append(setting_at.search)
        self._ambiguous = {path for path, searches in several.items() if any(one != searches[0] for one in searches)}

    def suggest(self, trial: BaseTrial) -> dict[str, Any]:
        """Let a trial draw the settings of a recipe: those that are read, given the others."""
        return self._draw_all(lambda parameter: parameter.draw(trial))

    def defaults(self) -> dict[str, Any]:
        """Map the parameters of the recipe with default settings, but for those that are kept, to their values."""
        values: dict[str, Any] = {}

        def note(parameter: Parameter) -> Any:
            values[parameter.name] = parameter.default
            return parameter.default

        self._draw_all(note)
        return values

    def recipe(self, settings: Mapping[str, Any]) -> Recipe:
        """Build the recipe with these settings and those that are kept; raise `RecipeError` if it is contradictory."""
        return self._model.with_read({**self._kept, **settings}, keep=settings)

    def _draw_all(self, ask: Callable[[Parameter], Any]) -> dict[str, Any]:
        drawn: dict[str, Any] = {}
        waiting = list(self._declared)
        while waiting:
            # A setting comes after those that say whether it is used.
            open_ = {setting_at.place.path for setting_at in waiting}
            settings = {**self._with_defaults(drawn), **drawn}
            searched_setting = next(
                setting_at for setting_at in waiting if not setting_at.depends & (open_ - {setting_at.place.path})
            )
            path = searched_setting.place.path
            if searched_setting.is_drawn(settings):
                drawn[path] = self._value(searched_setting, settings, ask)
                waiting = [other for other in waiting if other.place.path != path]
            else:
                waiting.remove(searched_setting)
        return drawn

    def _with_defaults(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        """Add the defaults of the other settings that exist; contradictions are not checked yet."""
        settings = {**self._kept, **drawn}
        for place in self._places:
            if place.path not in settings and holds(place.case, settings):
                settings[place.path] = place.default
        return settings

    def _value(self, setting_at: _SearchedSetting, settings: Mapping[str, Any], ask: Callable[[Parameter], Any]) -> Any:
        search, path = setting_at.search, setting_at.place.path
        default = settings[path]
        if isinstance(search, OneOf):
            label, options = setting_at.options(settings)
            named = f"{path}[{label}]" if label else path
            return ask(Parameter(named, options=options, default=default if default in options else options[0]))
        if isinstance(search, Between):
            named = f"{path}[{[*setting_at.place.case.values()][-1][0]}]" if path in self._ambiguous else path
            nearest = min(max(default, search.low), search.high)
            return ask(Parameter(named, search.low, search.high, search.log, default=nearest))
        return self._ratios(path, search, ask)

    def _ratios(self, path: str, search: Ratios, ask: Callable[[Parameter], Any]) -> tuple[float, ...]:
        others: Sequence[float] = [
            ask(Parameter(f"{path}[{number}]", 1.0 / search.most, search.most, log=True, default=1.0))
            for number in range(2, self._parents + 1)
        ]
        total = 1.0 + sum(others)
        return tuple(share / total for share in (1.0, *others))
