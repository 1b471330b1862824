"""Divide the calibration images into those for statistics and weights and those on which children are judged."""

from __future__ import annotations

from dataclasses import dataclass

from depfuse.data.loader import Loader
from depfuse.recipe.sections import Calibration

# Of six digits pairs, children refitted from 15/16 of the images have a lower cross-entropy than from 7/8 on four, a
# higher one on one: the refit loses what is held out.
STEPS_SHARE = 1 / 16
STEPS_SHARE_OF_FEW = 1 / 8  # as long as that is not more than so many images:
STEPS_ENOUGH = 32  # images to judge steps by that suffice
STEPS_MOST = 500  # images to judge steps by
STEPS_FEWEST = 3  # of fewer images none can be held out: two are left for statistics
CANDIDATES_SHARE = 0.25  # share of the images that candidates are judged by
RENORM_IMAGES = 500  # for statistics of matchings and shares to be compared
JUDGED_IMAGES = 500  # to judge these by


def for_statistics(images: Loader, settings: Calibration, seed: int) -> Loader:
    """Flip and shift images at random where BatchNorm statistics shall be of such; else return them as they are."""
    return images.augmented(images.suited_augmentation, seed) if settings.augment else images


@dataclass(frozen=True, eq=False)
class CalibrationSplit:
    """Calibration images cut in two.

    Attributes
    ----------
    statistics
        Images from which statistics and weights are taken.
    judging
        Images on which children are compared; others than these, where there are enough.
    """

    statistics: Loader
    judging: Loader

    @classmethod
    def for_matchings(cls, images: Loader) -> CalibrationSplit:
        """Cut for a choice between matchings: the child is only averaged and reset, and both are the first images."""
        return cls(images.first(RENORM_IMAGES), images.first(JUDGED_IMAGES))

    @classmethod
    def for_start(cls, images: Loader) -> CalibrationSplit | None:
        """Cut to compare parents that may share a start: the last half is judged by. None of fewer than four images."""
        held = min(JUDGED_IMAGES, images.count // 2)
        if held < 2:
            return None
        rest = images.count - held
        return cls(images.between(0, rest).first(RENORM_IMAGES), images.between(rest, images.count))

    @classmethod
    def for_shares(cls, images: Loader, labelled: int) -> CalibrationSplit:
        """Cut to choose shares by: the labelled images, the first ones, are judged by where there are any."""
        if labelled:
            rest = images.between(labelled, labelled + RENORM_IMAGES) if images.count - labelled > 1 else None
            return cls(rest or images.first(RENORM_IMAGES), images.first(labelled))
        seen = min(RENORM_IMAGES, images.count // 2)
        return cls(images.first(seen), images.between(seen, seen + JUDGED_IMAGES))

    @classmethod
    def for_candidates(cls, images: Loader) -> CalibrationSplit:
        """Cut to compare candidates: the last quarter is judged by."""
        return cls._last(images, max(2, round(CANDIDATES_SHARE * images.count)))

    @classmethod
    def for_steps(cls, images: Loader) -> CalibrationSplit:
        """Cut to compare a child before and after a step: the last sixteenth is judged by, of few up to an eighth."""
        if images.count < STEPS_FEWEST:
            return cls(images, images)
        held = min(STEPS_ENOUGH, max(1, round(STEPS_SHARE_OF_FEW * images.count)))
        return cls._last(images, min(STEPS_MOST, max(held, round(STEPS_SHARE * images.count))))

    @classmethod
    def _last(cls, images: Loader, held: int) -> CalibrationSplit:
        rest = images.count - held
        return cls(images.first(rest), images.between(rest, images.count))
