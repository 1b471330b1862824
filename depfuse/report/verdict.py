"""One honest sentence: what is best, by how much, and what should be kept instead of the child."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from depfuse.report.schema import NetworkScores, PathReport, ScoreValues

Kept = Literal["child", "parent", "refitted parent", "trained parent", "ensemble"]
# How the advice of a verdict begins -> what it says to keep.
_ADVICE: dict[str, Kept] = {
    "keep the child": "child",
    "keep that parent": "parent",
    "keep the refitted parent": "refitted parent",
    "keep the trained parent": "trained parent",
    "keep the ensemble": "ensemble",
}


def verdict(
    parents: Sequence[NetworkScores],
    ensemble: ScoreValues,
    naive: Sequence[ScoreValues],
    child: ScoreValues,
    heads: Sequence[ScoreValues] = (),
    trained_parent: NetworkScores | None = None,
    candidate: str | None = None,
    teacher: ScoreValues | None = None,
) -> str:
    """Compare a child with its parents, their ensemble and the naive averages, by accuracy.

    `heads` are the parents with their heads refitted to the ensemble, in order; one of them is to be kept where it is
    better than the child and the parents. So is `trained_parent`, trained as long as the child was. `candidate`
    says what the child is, where it is the best of several. `teacher` is the ensemble that the child learned from,
    where the parents were changed for that; it stands for the ensemble where it is better. Differences are those of the
    printed figures, in percentage points.
    """
    name = "logit ensemble"
    if teacher is not None and _points(teacher, ensemble) > 0:
        ensemble, name = teacher, "ensemble that taught it"
    best_parent = max(parents, key=lambda parent: parent.accuracy)
    best_naive = max(naive, key=lambda scores: scores.accuracy)
    over_parent = _points(child, best_parent)
    over_ensemble = _points(child, ensemble)
    parent = f"the {'better' if len(parents) == 2 else 'best'} parent ({_named(best_parent)})"
    what = "The child" if candidate is None else f"The child ({candidate})"
    sentence = f"{what} reaches {_per_cent(child)}, {_relation(over_parent)} {parent}"
    if _points(child, best_naive) < 0:
        sentence += f" and below the naive average ({_per_cent(best_naive)})"
    rivals = [*heads, best_parent]
    if trained_parent is not None and _points(trained_parent, max([child, *rivals], key=lambda s: s.accuracy)) > 0:
        over = _points(trained_parent, ensemble)
        rest = f", or all {len(parents)} as the {name} ({_per_cent(ensemble)})" if over < 0 else ""
        return f"{sentence}, and a parent trained as long ({_named(trained_parent)}): keep the trained parent{rest}."
    best_head = max(range(len(heads)), key=lambda number: heads[number].accuracy, default=None)
    if best_head is not None:
        head = heads[best_head]
        if _points(head, child) > 0 and _points(head, best_parent) > 0:
            named = Path(parents[best_head].path or f"number {best_head + 1}").name
            sentence += f", and parent {named} with its head refitted to the ensemble {_per_cent(head)}"
            over = _points(head, ensemble)
            rest = f", or all {len(parents)} as the {name} ({_per_cent(ensemble)})" if over < 0 else ""
            return f"{sentence}: keep the refitted parent{rest}."
    if over_parent < 0 and _points(best_parent, ensemble) >= 0:
        return f"{sentence}: keep that parent instead."
    joint = f"the {name} ({_per_cent(ensemble)})"
    if over_parent < 0:
        return f"{sentence}: keep that parent, or all {len(parents)} as {joint}."
    if over_ensemble < 0:
        return (
            f"{sentence} and {_relation(over_ensemble)} {joint}:"
            f" keep the ensemble where running {len(parents)} networks is affordable."
        )
    return f"{sentence} and {_relation(over_ensemble)} {joint}: keep the child."


def kept(sentence: str) -> Kept | None:
    """What a verdict says to keep; None where it is in the words of another version."""
    advice = sentence.rpartition(": ")[2]
    return next((what for words, what in _ADVICE.items() if advice.startswith(words)), None)


def barrier_sentence(report: PathReport) -> str:
    """Say how high the barrier between two parents is, matched and naively."""
    barrier = report.barrier
    if report.methods:
        heights = [
            f"{_nats(method.barrier_loss)} and {100 * method.barrier_error:.2f} points of accuracy by {method.name}"
            for method in report.methods
        ]
        naive = f"{_nats(barrier.naive_loss)} and {100 * barrier.naive_error:.2f} points"
        return f"The barrier between the parents is {', '.join(heights)}; without matching it is {naive}."
    matched, naive = (
        f"{_nats(loss)} and {100 * error:.2f} points of accuracy"
        for loss, error in ((barrier.loss, barrier.error), (barrier.naive_loss, barrier.naive_error))
    )
    return f"The barrier between the parents is {matched}; without matching it is {naive}."


def _nats(loss: float | None) -> str:
    return "not finite" if loss is None else f"{loss:.4f} nats"


def _points(first: ScoreValues, second: ScoreValues) -> float:
    """Difference in percentage points, as it would be printed."""
    return round(round(100 * first.accuracy, 2) - round(100 * second.accuracy, 2), 2)


def _relation(points: float) -> str:
    if points == 0:
        return "as much as"
    return f"{abs(points):.2f} points {'above' if points > 0 else 'below'}"


def _per_cent(scores: ScoreValues) -> str:
    return f"{100 * scores.accuracy:.2f} %"


def _named(parent: NetworkScores) -> str:
    name = f"{Path(parent.path).name}, " if parent.path else ""
    return f"{name}{_per_cent(parent)}"
