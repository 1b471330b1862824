"""Contenders of a comparison, and the advice on which of them to keep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from depfuse.align.description import moved_channels
from depfuse.fusion.advice import Advice, Contender, SameStart, advise

if TYPE_CHECKING:
    from depfuse.fusion.comparison import Comparison
    from depfuse.fusion.result import FusionResult


def advise_on(
    result: FusionResult,
    comparison: Comparison,
    *,
    child: Path | None = None,
    parents: Sequence[Path] | None = None,
    baseline: Path | None = None,
) -> Advice:
    """Decide which network of a fusion to keep.

    Parameters
    ----------
    result, comparison
        Results of `fuse` and `compare`.
    child, parents, baseline
        The files of the child, the parents and the parent that was trained as long, where there are any.
    """
    count = len(comparison.parents)
    files: Sequence[Path | None] = [None] * count if parents is None else parents
    sets = result.parent_labels
    known = [None] * count if sets is None else [len(labels) for labels in sets.sets]
    contenders = [Contender("child", comparison.child, path=child)]
    contenders += [
        Contender("parent", scores, number, path, labels=labels)
        for number, (scores, path, labels) in enumerate(zip(comparison.parents, files, known, strict=True), start=1)
    ]
    contenders += [
        Contender("ensemble", comparison.ensemble, networks=count),
        Contender("average", comparison.naive),
        Contender("renewed average", comparison.renewed),
        *(Contender("refitted parent", scores, number) for number, scores in enumerate(comparison.heads, start=1)),
    ]
    if comparison.baseline is not None:
        number = comparison.baseline.parent + 1
        contenders.append(Contender("trained parent", comparison.baseline.scores, number, baseline))
    if comparison.teacher is not None:
        contenders.append(Contender("teachers", comparison.teacher, networks=count))
    step = result.self_trained
    return advise(contenders, _same_start(result), None if step is None else step.kept)


def _same_start(result: FusionResult) -> SameStart | None:
    """Count the channels that were moved, where the couplings are of the parents' own channels."""
    if result.partial_merge is not None or result.widths is not None:
        return None
    moved = moved_channels(result.couplings, result.like)
    return None if moved is None else SameStart(moved=moved[0], channels=moved[1])
