"""Run a trial: fuse by a recipe from more and more calibration images, and measure the child's quality."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from optuna import Trial, TrialPruned

from depfuse.align.statistics.shared import SharedMoments
from depfuse.data import DataSet
from depfuse.data.loader import Loader, calibration_loader, calibration_order
from depfuse.ensemble.ensemble import Ensemble
from depfuse.ensemble.label_sets import LabelSets
from depfuse.errors import ArchitectureError, DataError, LimitWarning, RecipeError
from depfuse.fusion.meaning import Known, Meaning
from depfuse.fusion.parents import Parents
from depfuse.fusion.pipeline import fuse
from depfuse.fusion.result import FusionResult
from depfuse.groups import find_groups, prove_groups
from depfuse.io.checkpoint import state_digest
from depfuse.networks.faithful import private_copy
from depfuse.progress import unseen
from depfuse.recipe import Recipe
from depfuse.study.judge import Quality
from depfuse.study.search_space import Space
from depfuse.teach.one_space import bring_into_one_space
from depfuse.text import counted

RESULT = "result"  # the user attribute of a trial that holds its recipe and result
FEWEST = 100  # calibration images, before a trial may be pruned
SIZES = 4  # of the calibration set, each twice the one before
FEWEST_JUDGED = 50
# What a matrix decomposition raises that does not converge.
NUMERICAL = (np.linalg.LinAlgError, torch.linalg.LinAlgError)  # type: ignore[attr-defined]


def growing(images: int) -> list[int]:
    """List the numbers of calibration images after which a trial is judged: 250, 500, 1000 and 2000 of 2000."""
    sizes = [images // 2**halvings for halvings in reversed(range(SIZES))]
    return [size for size in sizes if size >= FEWEST] or [images]


class Objective:
    """Quality of a recipe's child, with the seconds that it takes where time is a second objective.

    Channel groups and the moments of the parents are found once for all trials.

    Parameters
    ----------
    space
        The space that recipes are drawn from.
    common
        A recipe with the settings that all of them share: calibration images, batch size, seed, the shares of the
        ensemble that children are judged against, and the task, where a drawn recipe leaves that open.
    parents
        The networks that every trial fuses.
    data
        The training images. Those to judge by are drawn after those to calibrate on, and no image is both.
    judged
        Number of images to judge by.
    labelled
        True to read the labels of these; see `Quality`.
    timed
        True for seconds as a second objective. Nothing is pruned then: two objectives do not order trials.

    Attributes
    ----------
    quality
        The measure that children are judged by.
    judged
        Number of images judged by, fewer than asked for where there are not so many.

    Raises
    ------
    DataError
        The calibration images leave too few to judge by.
    GroupError
        See `fuse`.
    """

    def __init__(
        self,
        space: Space,
        common: Recipe,
        parents: Parents,
        data: DataSet,
        *,
        judged: int,
        labelled: bool = False,
        timed: bool = False,
    ) -> None:
        models = parents.models
        device = next(models[0].parameters()).device
        available = max(len(data.train) - common.calibration.images, 0)
        if available < min(judged, FEWEST_JUDGED):
            raise DataError(
                f"{common.calibration.images} of {counted(len(data.train), 'training image')} would be for calibration,"
                f" which leaves {available} to judge children by: give fewer, as `calibration.images`"
            )
        images = calibration_loader(
            data,
            common.calibration.images + judged,
            batch_size=common.calibration.batch_size,
            device=device,
            seed=common.seed,
        )
        self.timed = timed
        self._space, self._task = space, common.task.name
        sizes = [common.calibration.images] if timed else growing(common.calibration.images)
        self._images = {size: images.first(size) for size in sizes}
        held_out = images.between(common.calibration.images, images.count)
        if labelled and held_out.labels is None:  # those for calibration have no labels but classes
            chosen = calibration_order(len(data.train), common.seed)[common.calibration.images : images.count]
            held_out = Loader(
                data.train.take(chosen), data.preprocessing, batch_size=common.calibration.batch_size, device=device
            )
        self.judged = held_out.count
        labels = None if parents.labels is None else LabelSets.create(parents.labels)
        example = data.example(device=device) if parents.example is None else parents.example
        copies = [private_copy(model, example) for model in models]
        judges = held_out if labelled else None
        known = Known(None if labels is None or labels.same else labels, scored=judges)
        meaning = Meaning.of(copies, common, images, example, None, known)
        if meaning.scored.name == "features":
            bring_into_one_space(copies, images)
        ensemble = Ensemble(copies, common.shares(len(models)), labels, task=meaning.task)
        self.quality = Quality(ensemble, held_out, labelled=labelled, meaning=meaning)
        self._moments = None
        if parents.of_one_width:
            found = find_groups(models[0], example)
            groups = prove_groups(models[0], found, example, seed=common.seed, proof=common.align.proof)
            self._moments = SharedMoments(models, groups)
            parents = replace(parents, groups=groups, moments=self._moments)
        self._parents = replace(parents, example=example, test=judges)

    def __call__(self, trial: Trial) -> float | tuple[float, float]:
        """Run a trial.

        Raises
        ------
        TrialPruned
            The recipe is contradictory or does not suit the parents, or its child is not finite or behind the median of
            other trials.
        """
        try:
            recipe = self._space.recipe(self._space.suggest(trial))
            recipe = recipe.changed(task=self._task) if recipe.task.name == "auto" else recipe
        except (RecipeError, ValueError) as error:  # Optuna's own, where somebody has queued what is no choice
            raise _pruned(trial, None, str(error)) from None
        for size in self._images:
            try:
                result, seconds = self._fused(recipe, size)
            except (ArchitectureError, RecipeError, *NUMERICAL) as error:
                raise _pruned(trial, recipe, str(error)) from None
            quality = self.quality(result.child)
            if not math.isfinite(quality):
                raise _pruned(trial, recipe, f"the child's scores are not finite, of {size} calibration images")
            if not self.timed:
                trial.report(quality, size)
            if size < recipe.calibration.images and trial.should_prune():
                raise _pruned(trial, recipe, f"behind the median at {size} calibration images")
        digest = state_digest(result.child.state_dict())
        _record(trial, recipe, seconds=seconds, digest=digest, not_converged=list(result.not_converged))
        return (quality, seconds) if self.timed else quality

    def _fused(self, recipe: Recipe, size: int) -> tuple[FusionResult, float]:
        """Fuse, and measure the seconds of the fusion without those of finding the groups."""
        saved = 0.0 if self._moments is None else self._moments.saved
        with unseen(), warnings.catch_warnings():
            warnings.simplefilter("ignore", LimitWarning)  # recorded with the trial
            result = fuse(
                self._parents,
                recipe,
                self._images[size],
            )
        saved = 0.0 if self._moments is None else self._moments.saved - saved
        return result, sum(result.seconds.values()) - result.seconds["groups"] + saved


def _pruned(trial: Trial, recipe: Recipe | None, reason: str) -> TrialPruned:
    _record(trial, recipe, reason=reason)
    return TrialPruned(reason)


def _record(trial: Trial, recipe: Recipe | None, **result: Any) -> None:
    """Store a trial's recipe and result in one attribute, since each attribute is a visit to the storage."""
    trial.set_user_attr(RESULT, {"recipe": None if recipe is None else recipe.model_dump(mode="json"), **result})
