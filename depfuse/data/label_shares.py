"""Shares of labels as they are written: `0-4:0.9,5-9:0.1`. Nothing here needs torch."""

from __future__ import annotations

import re
from collections.abc import Mapping

from depfuse.errors import DataError

LabelShare = Mapping[int, float]

_PIECE = re.compile(r"(\d+)(?:-(\d+))?(?::([0-9.eE+-]+))?")
_NUMBERS = re.compile(r"[\d\s,:.eE+-]+")


def parse_labels(text: str) -> dict[int, float]:
    """Parse the share of each class's training images to keep.

    ``"0-4"`` keeps all of classes 0 to 4 and nothing else, ``"0-4:0.9,5-9:0.1"`` nine tenths of the
    first five and one tenth of the others, ``"1,3,7:0.5"`` all of 1 and 3 and half of 7.

    Returns
    -------
    dict
        label -> share in (0, 1], in ascending order of labels.

    Raises
    ------
    DataError
        The text is malformed, a label occurs twice, or a share is outside (0, 1].
    """
    return dict(sorted(_shares(text).items()))


def _shares(text: str) -> dict[int, float]:
    """Parse labels with their shares, in the order in which they are written."""
    shares: dict[int, float] = {}
    for piece in text.split(","):
        match = _PIECE.fullmatch(piece.strip())
        if match is None:
            raise DataError(f"labels {text!r}: {piece.strip()!r} is not like 3, 0-4 or 0-4:0.9")
        first, last = int(match[1]), int(match[2] or match[1])
        try:
            share = float(match[3] or 1)
        except ValueError:
            raise DataError(f"labels {text!r}: {match[3]!r} is no number") from None
        if not 0 < share <= 1:
            raise DataError(f"labels {text!r}: share {share:g} is outside (0, 1]")
        if last < first:
            raise DataError(f"labels {text!r}: {first}-{last} runs backwards")
        if last - first > 100_000:
            raise DataError(f"labels {text!r}: {first}-{last} is more classes than any data set has")
        for label in range(first, last + 1):
            if label in shares:
                raise DataError(f"labels {text!r}: label {label} stands twice")
            shares[label] = share
    return shares


def read_classes(text: str) -> tuple[int, ...] | tuple[str, ...]:
    """Read `0-4` or `7,3,1` as numbers, and `cat,dog` as names, in the order in which they are written.

    Raises
    ------
    DataError
        It is malformed, or names one class twice.
    """
    if _NUMBERS.fullmatch(text):
        return tuple(_shares(text))
    names = tuple(name.strip() for name in text.split(","))
    if "" in names or len(set(names)) < len(names):
        raise DataError(f"classes {text!r} must be different names with commas between them, like cat,dog")
    return names


def check_share(share: int, shares: int, alpha: float | None = None) -> None:
    """Raise `DataError` unless `share` is one of 0 ... `shares` - 1, and a concentration `alpha` is positive."""
    if not 0 <= share < shares:
        raise DataError(f"share {share} of {shares} does not exist: shares are 0 to {shares - 1}")
    if alpha is not None and not 0 < alpha < float("inf"):
        raise DataError(f"Dirichlet concentration {alpha} must be positive")
