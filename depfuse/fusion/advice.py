"""Advice on what to keep of a fusion, decided from scores: plain data, which `verdict` puts into words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field

from depfuse.errors import DataError
from depfuse.evaluate import CERTAIN, Scores, difference, trivial
from depfuse.io.stored import Stored
from depfuse.tasks.scores import ACCURACY, Measure

What = Literal[
    "child", "parent", "ensemble", "average", "renewed average", "trained parent", "refitted parent", "teachers"
]
AVERAGES: tuple[What, What] = ("average", "renewed average")
HARDLY = 0.05  # share of the channels that may be moved where parents share a start


@dataclass(frozen=True)
class Contender:
    """A network that was scored, or several that were scored as an ensemble.

    Attributes
    ----------
    what
        The `child`; a `parent`, or the `ensemble` of all, as they were given; the parents' `average`, without any
        matching, and the `renewed average`, with its BatchNorm reset; a `trained parent`, trained as long as the child;
        a `refitted parent`, whose head was refitted to the ensemble; the `teachers`, the ensemble of parents that were
        changed to teach the child.
    number
        Which parent it is, or comes from, counted from 1.
    path
        Its file.
    networks
        Number of networks that have to be run for an output.
    labels
        Number of labels that it knows, where the parents know different ones.
    """

    what: What
    scores: Scores
    number: int | None = None
    path: Path | None = None
    networks: int = 1
    labels: int | None = None


class Compared(Stored):
    """A contender compared with the child.

    `value` is its score, of classes its accuracy, a fraction; `lead` the child's minus this one's, and `error` the
    standard error of that over the test images.
    """

    what: What
    value: float = Field(validation_alias=AliasChoices("value", "accuracy"))
    lead: float
    error: float
    number: int | None = None
    path: str | None = None
    networks: int = 1
    labels: int | None = None

    @property
    def certain(self) -> bool:
        """Tell whether the difference to the child is significant on these test images."""
        return abs(self.lead) > CERTAIN * self.error

    @property
    def held(self) -> bool:
        """Tell whether the user has its file or can have it: an average needs neither matching nor training."""
        return self.what in ("child", "parent", "ensemble", *AVERAGES) or (
            self.what == "trained parent" and self.path is not None
        )


class SameStart(Stored):
    """Parents that share a start, so that channels are in place already: how many the matching moved."""

    moved: int
    channels: int


class Advice(Stored):
    """The network to keep, and why.

    Attributes
    ----------
    keep
        The best that the user has; None where nothing is better than chance. Where one network and the ensemble cannot
        be told apart, the one network.
    instead
        The best single network, where `keep` is an ensemble.
    child
        The child itself, with a lead of 0.
    rivals
        All contenders that the child was compared with.
    better
        Contenders that are better than the best single network but have no file.
    images
        Number of test images.
    measure
        What networks are scored by.
    chance
        Score of the best constant output: of classes, the share of the most frequent label.
    chance_alone
        True if the child is no better than that, within the error.
    same_start
        Given where the parents share a start.
    self_trained
        Whether self-training was kept; None where there was none.
    """

    keep: Compared | None
    instead: Compared | None = None
    child: Compared
    rivals: list[Compared]
    better: list[Compared] = Field(default_factory=list)
    images: int
    measure: Measure = ACCURACY
    chance: float
    chance_alone: bool = False
    same_start: SameStart | None = None
    self_trained: bool | None = None

    def best(self, *kinds: What) -> Compared | None:
        """Return the rival of the given kinds with the highest score."""
        candidates = [rival for rival in self.rivals if rival.what in kinds]
        return max(candidates, key=lambda rival: rival.value, default=None)


def advise(contenders: Sequence[Contender], moved: SameStart | None = None, self_trained: bool | None = None) -> Advice:
    """Decide which network to keep.

    The best single network is that with the highest score that the user has, the child before others of exactly the
    same. The ensemble is kept only where it differs from that network by more than chance on the images.

    Parameters
    ----------
    contenders
        The child and its rivals, all scored on the same labelled images by the same measure.
    moved
        Number of channels that the matching moved, where it gave permutations of the parents' own channels. The
        parents share a start if these are hardly any, and the plain average is not worse than the best parent.
    self_trained
        Whether self-training was kept, where there was any.
    """
    children = [contender for contender in contenders if contender.what == "child"]
    if len(children) != 1:
        raise DataError(f"{len(children)} children among what is compared: one is needed")
    scores = children[0].scores
    rows = {id(contender): _beside(scores, contender) for contender in contenders}
    useful = [contender for contender in contenders if rows[id(contender)].held and not trivial(contender.scores)]
    single = max(
        (contender for contender in useful if contender.networks == 1),
        key=lambda contender: (contender.scores.value, contender.what == "child"),
        default=None,
    )
    several = max(
        (contender for contender in useful if contender.networks > 1),
        key=lambda contender: contender.scores.value,
        default=None,
    )
    keep = single
    if several is not None and (single is None or _above(several, single)):
        keep = several
    best = keep if single is None else single
    kinds = {contender.what for contender in contenders if not rows[id(contender)].held and contender.networks == 1}
    hidden = [
        max(
            (contender for contender in contenders if contender.what == kind),
            key=lambda contender: contender.scores.value,
        )
        for kind in sorted(kinds)
    ]
    return Advice(
        keep=None if keep is None else rows[id(keep)],
        instead=None if keep is single or single is None else rows[id(single)],
        child=rows[id(children[0])],
        rivals=[rows[id(contender)] for contender in contenders if contender is not children[0]],
        better=[rows[id(contender)] for contender in hidden if best is not None and _above(contender, best)],
        images=scores.count,
        measure=scores.measure,
        chance=scores.trivial,
        chance_alone=trivial(scores),
        same_start=moved if moved is not None and _share_a_start(contenders, moved) else None,
        self_trained=self_trained,
    )


def _beside(child: Scores, other: Contender) -> Compared:
    lead = difference(child, other.scores)
    return Compared(
        what=other.what,
        value=other.scores.value,
        lead=lead.value,
        error=0.0 if other.what == "child" else lead.error,
        number=other.number,
        path=None if other.path is None else str(other.path),
        networks=other.networks,
        labels=other.labels,
    )


def _above(first: Contender, second: Contender) -> bool:
    gain = difference(first.scores, second.scores)
    return gain.value > 0 and gain.certain


def _share_a_start(contenders: Sequence[Contender], moved: SameStart) -> bool:
    parents = [contender for contender in contenders if contender.what == "parent"]
    averages = [contender for contender in contenders if contender.what in AVERAGES]
    if not parents or not averages or moved.moved > HARDLY * moved.channels:
        return False
    parent = max(parents, key=lambda contender: contender.scores.value)
    return not trivial(parent.scores) and any(not _above(parent, average) for average in averages)
