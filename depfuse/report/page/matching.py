"""The details of a matching: the tree of groups with the correlation of matched channels, and these by depth."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from depfuse.report.matching import GroupMatch, MatchReport, ParentMatch, match_sentence
from depfuse.report.page.figures import Line, bar, chart, legend
from depfuse.report.page.markup import Html, element, join
from depfuse.report.page.numbers import decimal
from depfuse.report.page.parts import (
    environment_section,
    on_demand,
    pairs,
    recipe_section,
    seconds_section,
    section,
    warnings_part,
)
from depfuse.report.page.tables import plain_table
from depfuse.text import counted

_NAME = re.compile(r"[\\/]")


@dataclass
class _Node:
    """A module of the network with the modules inside it and the groups that are named after it."""

    inside: dict[str, _Node] = field(default_factory=dict)
    groups: list[GroupMatch] = field(default_factory=list)


def match_details(report: MatchReport) -> Html:
    """Show every matching of a report, then seconds, recipe and command."""
    rest = [
        seconds_section(report.seconds),
        recipe_section(report.recipe),
        section("Networks and data", pairs({"architecture": report.architecture, "data": report.data})),
        environment_section(report.environment, report.command),
    ]
    matchings = [_matching(match, report.kept_path) for match in report.matchings]
    return join(
        [
            warnings_part(report.not_converged),
            element("div", *matchings, class_="column"),
            element("div", *rest, class_="column"),
        ]
    )


def match_summary(report: MatchReport) -> str:
    """Summarise in a line how well the matched channels correlate."""
    correlations = [means[1] for match in report.matchings if (means := match.mean_correlation) is not None]
    if not correlations:
        return counted(len(report.matchings), "matching")
    mean = sum(correlations) / len(correlations)
    return f"{counted(len(report.matchings), 'matching')}, mean correlation {decimal(mean, 3)}"


def _matching(match: ParentMatch, kept: str) -> Html:
    name, target = _NAME.split(match.path)[-1], _NAME.split(kept)[-1]
    if name == target:
        name, target = match.path, kept
    return section(
        f"{name} to {target}", element("p", match_sentence(match, name, target)), _depths(match), _tree(match.groups)
    )


def _depths(match: ParentMatch) -> Html | None:
    rows = match.depths
    if match.mean_correlation is None:
        return None
    band = ([(row.depth, row.after_low) for row in rows], [(row.depth, row.after_high) for row in rows])
    lines = [
        Line("before matching", "naive", [(row.depth, row.before) for row in rows]),
        Line("matched: mean, 10 % to 90 % of channels", "look0", [(row.depth, row.after) for row in rows], band),
    ]
    before, after = match.mean_correlation
    says = f"Correlation of matched channels by depth: on the mean {decimal(before, 3)}, matched {decimal(after, 3)}"
    heads = ("module", "before", "matched", "10 %", "90 %")
    numbers = [
        (row.module, *(decimal(value, 3) for value in (row.before, row.after, row.after_low, row.after_high)))
        for row in rows
    ]
    drawing = chart(says, "depth", "correlation of matched channels", lines)
    table = on_demand("The depths in numbers", plain_table("Correlation by depth", heads, numbers))
    return element("div", drawing, legend(lines), table)


def _tree(groups: Sequence[GroupMatch]) -> Html:
    """Draw the groups by module, each with its correlation before and after matching."""
    root = _Node()
    for group in groups:
        node = root
        for part in group.name.split("."):
            node = node.inside.setdefault(part, _Node())
        node.groups.append(group)
    return element("ul", *_branches(root), class_="tree")


def _branches(node: _Node) -> list[Html]:
    items = []
    for name, inner in node.inside.items():
        while len(inner.inside) == 1 and not inner.groups:
            (below, inner), *_ = inner.inside.items()
            name = f"{name}.{below}"
        items += [element("li", _leaf(name, group), class_="leaf") for group in inner.groups]
        if inner.inside:
            branches = element("ul", *_branches(inner))
            items.append(element("li", element("details", element("summary", name), branches, open=True)))
    return items


def _leaf(name: str, group: GroupMatch) -> Html:
    after = group.correlation_after
    change = f"{decimal(group.correlation_before, 2)} → {decimal(after, 2)}"
    return join(
        [
            element("span", name, class_="name"),
            element("span", f"{counted(group.channels, 'channel')}, {group.moved:,} moved", class_="quiet"),
            bar(after),
            element("span", change, class_="number"),
        ]
    )
