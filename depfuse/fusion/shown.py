"""A fusion's result as a reader sees it: 20 lines in a terminal, a card in a notebook."""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from depfuse.evaluate import Agreement, Scores
from depfuse.fusion.meaning import LEARNED
from depfuse.groups import ChannelGroups
from depfuse.groups.reasons import left_in_place
from depfuse.networks.copying import unwrap
from depfuse.tasks.scores import ACCURACY, AGREEMENT
from depfuse.text import counted, decimal

if TYPE_CHECKING:
    from torch import nn

    from depfuse.fusion.agreement import AgreementComparison
    from depfuse.fusion.comparison import Comparison
    from depfuse.fusion.result import FusionResult
    from depfuse.fusion.step_acceptance import Step

MOST_STEPS = 3  # lines of steps
MOST_SHOWN = 20  # lines in a terminal
WIDTH = 108  # characters of a line, without its title
MOST_LINES = 2  # of a row, but for the verdict
MOST_PARENTS = 6  # in a comparison
MOST_BARS = 120  # of the picture of the groups
BAR, TALLEST = 5, 32  # width and height of its bars, pixels


def as_text(result: FusionResult) -> str:
    """Format a result in at most 20 lines."""
    lines = [heading(result)]
    for title, text in rows(result):
        wrapped = textwrap.wrap(text, WIDTH) or [""]
        if len(wrapped) > MOST_LINES and title != "verdict":
            wrapped[MOST_LINES - 1 :] = [f"{wrapped[MOST_LINES - 1][: WIDTH - 3]}..."]
        lines += [
            f"  {heading:<10}{line}" for heading, line in zip([title, *[""] * len(wrapped)], wrapped, strict=False)
        ]
    if len(lines) > MOST_SHOWN:
        lines[MOST_SHOWN - 1 :] = ["  ..."]
    return "\n".join(lines)


def as_html(result: FusionResult) -> str:
    """Format a result as a card of at most 30 lines, with a picture of its channel groups and a folded list of them."""
    lines = [
        f'<tr><th style="text-align:left;vertical-align:top">{html.escape(title)}</th>'
        f'<td style="text-align:left">{html.escape(text)}</td></tr>'
        for title, text in rows(result)
    ]
    return (
        f"<div><b>{html.escape(heading(result))}</b>"
        f"<table>{''.join(lines)}</table>{picture(result.groups)}{groups_folded(result.groups)}</div>"
    )


def comparison_as_text(found: Comparison | AgreementComparison) -> str:
    """Format scores of networks, and the verdict, in lines that need no scrolling."""
    title, heads, rows = comparison_rows(found)
    lines = [
        f"  {name:<26}{'  '.join(f'{head} {cell}' for head, cell in zip(heads, cells, strict=True))}"
        for name, *cells in rows
    ]
    return "\n".join([title, *lines, *textwrap.wrap(found.verdict, WIDTH, initial_indent="  ", subsequent_indent="  ")])


def comparison_as_html(found: Comparison | AgreementComparison) -> str:
    """Format scores of networks as a table, and the verdict below it."""
    title, heads, rows = comparison_rows(found)
    left, right = 'style="text-align:left"', 'style="text-align:right"'
    lines = [
        f"<tr><th {left}>{name}</th>{''.join(f'<td {right}>{cell}</td>' for cell in cells)}</tr>"
        for name, *cells in rows
    ]
    head = "".join(f"<th {right}>{head}</th>" for head in heads)
    return (
        f"<div><b>{html.escape(title)}</b><table><tr><th></th>{head}</tr>{''.join(lines)}</table>"
        f"<p>{html.escape(found.verdict)}</p></div>"
    )


def comparison_rows(found: Comparison | AgreementComparison) -> tuple[str, tuple[str, str], list[tuple[str, str, str]]]:
    """List title, columns, and name and scores of each network, of the first parents where there are many."""
    few = len(found.parents) <= MOST_PARENTS
    parents: Sequence[Scores | Agreement] = found.parents[:MOST_PARENTS]
    heads: Sequence[Scores | Agreement] = found.heads if few else ()
    named: list[tuple[str, Scores | Agreement]] = [("child", found.child)]
    named += [(f"parent {number}", own) for number, own in enumerate(parents, start=1)]
    named += [(f"parent {number}, head refitted", own) for number, own in enumerate(heads, start=1)]
    if found.baseline is not None:
        named.append((f"parent {found.baseline.parent + 1}, trained as long", found.baseline.scores))
    named += [("ensemble", found.ensemble), ("naive average", found.naive), ("naive average, reset", found.renewed)]
    labelled = not isinstance(found.child, Agreement)
    title = f"Comparison on {found.child.count:,} images{'' if labelled else ' without labels'}"
    title += "" if few else f", the first {MOST_PARENTS} of {len(found.parents)} parents"
    measure = found.child.measure
    agrees = "agrees with the ensemble" if measure == AGREEMENT else f"{measure.name} under the ensemble"
    columns = (measure.name, "loss") if labelled else (agrees, "confidence" if measure == AGREEMENT else "loss")
    return title, columns, [(name, f"{measure.text(_value(own)):>8}", _second(own)) for name, own in named]


def _second(scores: Scores | Agreement) -> str:
    if isinstance(scores, Agreement) and math.isfinite(scores.confidence):
        return f"{100 * scores.confidence:6.2f} %"
    loss = scores.disagreement if isinstance(scores, Agreement) else scores.loss
    return decimal(loss) if math.isfinite(loss) else "none"


def heading(result: FusionResult) -> str:
    """Say in a line what was fused."""
    return f"FusionResult: {counted(len(result.parents), 'parent')} fused by preset {result.recipe.preset}"


def rows(result: FusionResult) -> Iterator[tuple[str, str]]:
    """List titles and lines of a result: networks, shares, groups, matching, refit, steps, seconds, scores, verdict."""
    yield "parents", ", ".join(dict.fromkeys(map(network_line, result.parents)))
    yield "child", f"{network_line(result.child)}{_kind(result)}"
    yield "shares", _shares(result)
    left = left_in_place(result.groups)
    yield "groups", f"{result.groups.summary()}; {left}" if left else result.groups.summary()
    align = result.recipe.align
    yield "matching", f"{align.criterion.name}, solver {align.solver.name}{_not_converged(result)}"
    yield "refit", result.refit_reason or f"{result.recipe.refit.name}, as the recipe asks"
    if result.mirroring:
        yield "mirror", result.mirroring
    if result.teaching:
        yield "teacher", result.teaching
    meaning = result.meaning
    if meaning.task is not None and (meaning.because or meaning.task.name != "classes"):
        yield "task", f"{meaning.task.name}: {meaning.because or LEARNED}"
    for step in result.steps[:MOST_STEPS]:
        yield "step", _step(step)
    if len(result.steps) > MOST_STEPS:
        yield "", f"and {counted(len(result.steps) - MOST_STEPS, 'more step')}: result.steps"
    total = sum(result.seconds.values())
    yield "seconds", f"{total:.1f}: " + ", ".join(f"{name} {seconds:.1f}" for name, seconds in result.seconds.items())
    if result.compared is None:
        yield "verdict", "none yet: result.comparison(test) scores child, parents and ensemble on your test data"
        return
    yield _scores(result.compared)
    yield "verdict", result.compared.verdict


def network_line(network: nn.Module) -> str:
    """Describe a network in a line: class, parameters, type, device."""
    plain = unwrap(network)
    parameters = list(plain.parameters())
    types = dict.fromkeys(str(parameter.dtype).removeprefix("torch.") for parameter in parameters)
    devices = dict.fromkeys(str(parameter.device) for parameter in parameters)
    count = sum(parameter.numel() for parameter in parameters)
    return f"{type(plain).__name__} ({', '.join([counted(count, 'parameter'), *types, *devices])})"


def picture(groups: ChannelGroups) -> str:
    """Draw every free group as a bar in the order of the network, as tall as it has channels, as an inline SVG."""
    free = groups.free[:MOST_BARS]
    if not free:
        return ""
    largest = max(group.size for group in free)
    bars = []
    for number, group in enumerate(free):
        height = max(2, round(TALLEST * group.size / largest))
        bars.append(
            f'<rect x="{number * (BAR + 1)}" y="{TALLEST - height}" width="{BAR}" height="{height}" fill="#4878a8">'
            f"<title>{html.escape(group.name)}: {counted(group.size, 'channel')}</title></rect>"
        )
    width = len(free) * (BAR + 1)
    label = f"Channels of {counted(len(groups.free), 'free group')}"
    return f'<svg width="{width}" height="{TALLEST}" role="img" aria-label="{label}">{"".join(bars)}</svg>'


def groups_folded(groups: ChannelGroups) -> str:
    """Write the groups as a list that is folded until it is clicked."""
    listed = "".join(
        f"<li>{html.escape(group.name)}: {counted(group.size, 'channel')}"
        f"{f', fixed: {html.escape(group.fixed)}' if group.fixed else ''}</li>"
        for group in groups
    )
    return (
        f"<details><summary>{html.escape(counted(len(groups), 'channel group'))}</summary><ul>{listed}</ul></details>"
    )


def _scores(found: Comparison | AgreementComparison) -> tuple[str, str]:
    """Write scores; without labels, how well networks agree with the ensemble."""
    values = {"child": _value(found.child), "best parent": max(map(_value, found.parents))}
    values |= {} if isinstance(found.ensemble, Agreement) else {"ensemble": _value(found.ensemble)}
    values["naive average"] = max(_value(found.naive), _value(found.renewed))
    measure = found.child.measure
    listed = ", ".join(f"{name} {measure.text(value)}" for name, value in values.items())
    by = "" if measure in (ACCURACY, AGREEMENT) else f"{measure.name}: "
    if isinstance(found.child, Agreement):
        what = "with the ensemble's predictions: " if measure == AGREEMENT else f"under the ensemble's outputs, {by}"
        return "agreement", f"{what}{listed} (of {found.child.count:,})"
    return "scores", f"{by}{listed} (of {found.child.count:,})"


def _value(scores: Scores | Agreement) -> float:
    return scores.ensemble if isinstance(scores, Agreement) else scores.value


def _kind(result: FusionResult) -> str:
    """Say what the child is besides an average of parents of its width."""
    kinds = []
    if result.best is not None:
        kinds.append(f"the best of {counted(len(result.family), 'candidate')}: {result.best.name}")
    if result.partial_merge is not None:
        kinds.append("wider than its parents, as some channels stay unmerged")
    if result.widths is not None:
        kinds.append(f"of the width of parent {result.like + 1}")
    return f", {', '.join(kinds)}" if kinds else ""


def _shares(result: FusionResult) -> str:
    shares = result.shares
    text = ", ".join(f"{share:.3g}" for share in shares.network)
    text += f", and other ones in {counted(len(shares.parts), 'part')}" if shares.parts else ""
    if (left := result.effective_shares) is not None:
        text += f"; soft couplings leave {', '.join(f'{share:.2f}' for share in left)}"
    return text


def _not_converged(result: FusionResult) -> str:
    if not result.not_converged:
        return ""
    rest = "" if len(result.not_converged) == 1 else f" (and {len(result.not_converged) - 1} more)"
    return f"; not converged: {result.not_converged[0]}{rest}"


def _step(step: Step) -> str:
    """Say in a line what a step after the merge changed."""
    kept = "kept" if step.kept else "not kept"
    distances = f"{decimal(step.after)} from the ensemble, {decimal(step.before)} without"
    return f"{step.name} {kept}: {distances} (on {step.images:,} held-out samples)"
