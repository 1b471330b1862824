"""What to keep of a fusion, decided from scores: plain data, to which `verdict` gives words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

from depfuse.errors import DataError
from depfuse.evaluate import CERTAIN, Scores, difference
from depfuse.text import storable

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
        The file that it lies in.
    networks
        How many networks have to be run for an output.
    labels
        How many of the labels it knows, where parents know different ones.
    """

    what: What
    scores: Scores
    number: int | None = None
    path: Path | None = None
    networks: int = 1
    labels: int | None = None


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")
    _storable = model_validator(mode="before")(storable)


class Compared(_Part):
    """A contender beside the child.

    `lead` is the child's accuracy less this one's, a fraction, `error` the standard error of that over the test images.
    """

    what: What
    accuracy: float
    lead: float
    error: float
    number: int | None = None
    path: str | None = None
    networks: int = 1
    labels: int | None = None

    @property
    def certain(self) -> bool:
        """Whether the test images tell it and the child apart."""
        return abs(self.lead) > CERTAIN * self.error

    @property
    def held(self) -> bool:
        """Whether the user has it in files, or can have it: an average needs neither matching nor training."""
        return self.what in ("child", "parent", "ensemble", *AVERAGES) or (
            self.what == "trained parent" and self.path is not None
        )


class SameStart(_Part):
    """Parents whose channels are in place already: how many of them the matching moved."""

    moved: int
    channels: int


class Advice(_Part):
    """What to keep, and why.

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
        All that it was compared with.
    better
        What is better than the best single network but lies in no file.
    images
        Number of test images.
    chance
        Share of the most frequent label among them.
    chance_alone
        Whether the child is no better than that, within the error.
    same_start
        Where the parents share a start.
    """

    keep: Compared | None
    instead: Compared | None = None
    child: Compared
    rivals: list[Compared]
    better: list[Compared] = []
    images: int
    chance: float
    chance_alone: bool = False
    same_start: SameStart | None = None

    def best(self, *kinds: What) -> Compared | None:
        """The most accurate rival of some kinds."""
        found = [rival for rival in self.rivals if rival.what in kinds]
        return max(found, key=lambda rival: rival.accuracy, default=None)


def advise(contenders: Sequence[Contender], chance: float, moved: SameStart | None = None) -> Advice:
    """Decide what to keep.

    The best single network is the most accurate one that the user has, the child before others that are exactly as
    accurate. The ensemble is kept only where the images tell it and that network apart.

    Parameters
    ----------
    contenders
        The child, and what it is compared with, all scored on the same labelled images.
    chance
        Accuracy of a network that always predicts the most frequent label.
    moved
        How many channels the matching moved, where it gave permutations of the parents' own channels. The parents share
        a start if these are hardly any, and the plain average is not worse than the best parent.
    """
    children = [contender for contender in contenders if contender.what == "child"]
    if len(children) != 1:
        raise DataError(f"{len(children)} children among what is compared: one is needed")
    scores = children[0].scores
    rows = {id(own): _beside(scores, own) for own in contenders}
    useful = [own for own in contenders if rows[id(own)].held and not _at_chance(own.scores, chance)]
    single = max(
        (own for own in useful if own.networks == 1), key=lambda own: (own.scores.accuracy, own.what == "child"),
        default=None,
    )  # fmt: skip
    several = max((own for own in useful if own.networks > 1), key=lambda own: own.scores.accuracy, default=None)
    keep = single
    if several is not None and (single is None or _above(several, single)):
        keep = several
    best = keep if single is None else single
    kinds = {own.what for own in contenders if not rows[id(own)].held and own.networks == 1}
    hidden = [
        max((own for own in contenders if own.what == kind), key=lambda own: own.scores.accuracy)
        for kind in sorted(kinds)
    ]
    return Advice(
        keep=None if keep is None else rows[id(keep)],
        instead=None if keep is single or single is None else rows[id(single)],
        child=rows[id(children[0])],
        rivals=[rows[id(own)] for own in contenders if own is not children[0]],
        better=[rows[id(own)] for own in hidden if best is not None and _above(own, best)],
        images=scores.count,
        chance=chance,
        chance_alone=_at_chance(scores, chance),
        same_start=moved if moved is not None and _share_a_start(contenders, chance, moved) else None,
    )


def _beside(child: Scores, other: Contender) -> Compared:
    lead = difference(child, other.scores)
    return Compared(
        what=other.what,
        accuracy=other.scores.accuracy,
        lead=lead.value,
        error=0.0 if other.what == "child" else lead.error,
        number=other.number,
        path=None if other.path is None else str(other.path),
        networks=other.networks,
        labels=other.labels,
    )


def _above(first: Contender, second: Contender) -> bool:
    found = difference(first.scores, second.scores)
    return found.value > 0 and found.certain


def _at_chance(scores: Scores, chance: float) -> bool:
    share = (scores.accuracy * scores.count + 1) / (scores.count + 2)
    error = math.sqrt(share * (1 - share) / (scores.count + 2))
    return not scores.accuracy > chance + CERTAIN * error


def _share_a_start(contenders: Sequence[Contender], chance: float, moved: SameStart) -> bool:
    parents = [own for own in contenders if own.what == "parent"]
    averages = [own for own in contenders if own.what in AVERAGES]
    if not parents or not averages or moved.moved > HARDLY * moved.channels:
        return False
    parent = max(parents, key=lambda own: own.scores.accuracy)
    return not _at_chance(parent.scores, chance) and any(not _above(parent, average) for average in averages)
