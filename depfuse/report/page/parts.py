"""Parts that the details of every kind of run share: seconds, recipe, environment, command."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from depfuse.report.page.figures import bar
from depfuse.report.page.markup import Html, element, join
from depfuse.report.page.numbers import decimal
from depfuse.report.page.scores import changed_settings, setting
from depfuse.report.schema import Environment


def section(title: str, *content: Html | None) -> Html:
    """Build a titled part of a run's details."""
    return element("section", element("h4", title), *content)


def on_demand(title: str, *content: Html) -> Html:
    """Fold a part that few readers need: it is closed until they open it."""
    return element("details", element("summary", title), *content)


def pairs(rows: Mapping[str, str | Html]) -> Html:
    """List names with their values."""
    return element("dl", *(element("div", element("dt", name), element("dd", value)) for name, value in rows.items()))


def seconds_section(seconds: Mapping[str, float]) -> Html:
    """Draw a bar for each step that took time."""
    taken = {step: value for step, value in seconds.items() if value > 0}
    longest = max(taken.values(), default=0.0)
    rows = [
        element("li", element("span", step), bar(value / longest), element("span", decimal(value, 2), class_="number"))
        for step, value in taken.items()
    ]
    return section(f"Seconds: {decimal(sum(taken.values()), 1)}", element("ul", *rows, class_="bars"))


def recipe_section(recipe: dict[str, Any], title: str = "Recipe") -> Html:
    """Show the settings that differ from the default recipe, and the whole recipe folded."""
    changed = {name: setting(value) for name, value in changed_settings(recipe).items()}
    news = pairs(changed) if changed else element("p", "The default settings.", class_="quiet")
    whole = element("pre", json.dumps(recipe, indent=1, ensure_ascii=False))
    return section(title, news, on_demand("All settings", whole))


def environment_section(environment: Environment, command: Sequence[str]) -> Html:
    """Show the environment of the run and the command that repeats it."""
    rows = {name.replace("_", " "): str(value) for name, value in environment if value is not None}
    return section("Command", element("pre", shlex.join(command)), on_demand("Environment", pairs(rows)))


def warnings_part(sentences: Sequence[str]) -> Html | None:
    """List the solvers that stopped at their limit, if any."""
    return element("p", join(sentences, " "), class_="warning") if sentences else None
