"""The report of `depfuse match`: its fields, its tables, and one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from depfuse.io.stored import Stored
from depfuse.report.schema import Environment
from depfuse.report.tables import plain_table

if TYPE_CHECKING:  # a report is read without torch
    from depfuse.align.description import MatchedGroup, MatchedTap, Matching


class GroupMatch(Stored):
    """A matched group; costs and correlations are means over channels.

    `source` is, for each channel, the channel of the other parent that goes there; None where the matching is soft.
    """

    name: str
    channels: int
    moved: int
    activation_cost_before: float | None
    activation_cost_after: float | None
    weight_cost_before: float
    weight_cost_after: float
    correlation_before: float | None
    correlation_after: float | None
    source: list[int] | None

    @classmethod
    def of(cls, group: MatchedGroup) -> GroupMatch:
        """Make the report of a matched group."""
        costs = group.activation_cost or (None, None)
        correlations = group.correlation or (None, None)
        hard = bool((group.matrix.max(1).values == 1.0).all())
        return cls(
            name=group.name,
            channels=group.channels,
            moved=group.moved,
            activation_cost_before=costs[0],
            activation_cost_after=costs[1],
            weight_cost_before=group.weight_cost[0],
            weight_cost_after=group.weight_cost[1],
            correlation_before=correlations[0],
            correlation_after=correlations[1],
            source=group.matrix.argmax(1).tolist() if hard else None,
        )


class DepthMatch(Stored):
    """Correlation of matched channels at one place of the network, over channels: mean, 10th and 90th percentile."""

    depth: int
    module: str
    group: str
    before: float
    after: float
    after_low: float
    after_high: float

    @classmethod
    def of(cls, depth: int, tap: MatchedTap) -> DepthMatch:
        """Make the report of matched channels at one place."""
        low, high = tap.spread
        return cls(
            depth=depth,
            module=tap.module,
            group=tap.group,
            before=float(tap.before.mean()),
            after=float(tap.after.mean()),
            after_low=low,
            after_high=high,
        )


class ParentMatch(Stored):
    """One parent's matching to the parent whose channel order is kept."""

    parent: int
    path: str
    digest: str
    groups: list[GroupMatch]
    depths: list[DepthMatch]

    @property
    def channels(self) -> int:
        """Number of channels of all groups."""
        return sum(group.channels for group in self.groups)

    @property
    def moved(self) -> int:
        """Number of channels that go to another place."""
        return sum(group.moved for group in self.groups)

    @property
    def mean_correlation(self) -> tuple[float, float] | None:
        """Mean correlation of matched channels over all depths, before and after; None where there are none."""
        if not self.depths:
            return None
        sums = sum(row.before for row in self.depths), sum(row.after for row in self.depths)
        return sums[0] / len(self.depths), sums[1] / len(self.depths)

    @classmethod
    def of(cls, parent: int, path: str, digest: str, matching: Matching, names: Sequence[str] | None) -> ParentMatch:
        """Make the report of a parent's matching, of the named groups only where names are given."""
        return cls(
            parent=parent,
            path=path,
            digest=digest,
            groups=[GroupMatch.of(group) for group in matching.groups if names is None or group.name in names],
            depths=[
                DepthMatch.of(depth, tap)
                for depth, tap in enumerate(matching.taps)
                if names is None or tap.group in names
            ],
        )


class MatchReport(Stored):
    """The report of `depfuse match`."""

    kept: int
    kept_path: str
    matchings: list[ParentMatch]
    converged: bool
    not_converged: list[str]
    seconds: dict[str, float]
    recipe: dict[str, Any]
    architecture: str
    data: str
    preprocessing: dict[str, Any]
    environment: Environment
    command: list[str]


def groups_table(match: ParentMatch) -> Table:
    """Tabulate the groups: costs and correlations before and after matching."""
    table = plain_table("group", "channels", "moved", "activation cost", "weight distance", "correlation")
    for group in match.groups:
        table.add_row(
            group.name,
            str(group.channels),
            str(group.moved),
            _change(group.activation_cost_before, group.activation_cost_after),
            _change(group.weight_cost_before, group.weight_cost_after),
            _change(group.correlation_before, group.correlation_after),
        )
    return table


def depths_table(match: ParentMatch) -> Table:
    """Tabulate the correlation of matched channels by place in the network."""
    heads = ("depth", "module", "group", "correlation before", "after", "10 % to 90 %")
    table = plain_table(*heads, left=("module", "group"))
    for row in match.depths:
        table.add_row(
            str(row.depth),
            row.module,
            row.group,
            f"{row.before:.3f}",
            f"{row.after:.3f}",
            f"{row.after_low:.3f} to {row.after_high:.3f}",
        )
    return table


def match_sentence(match: ParentMatch, name: str, reference: str) -> str:
    """Say how much matching changed."""
    sentence = f"Of {match.channels} channels of {name}, {match.moved} go to another place in {reference}"
    if match.mean_correlation is not None:
        before, after = match.mean_correlation
        sentence += f"; the mean correlation over all depths rises from {before:.3f} to {after:.3f}"
        if after < before:
            sentence = sentence.replace("rises", "falls")
    return f"{sentence}."


def _change(before: float | None, after: float | None) -> str:
    return "-" if before is None or after is None else f"{before:.4g} → {after:.4g}"
