"""Train a network on a data set, as the parents of a fusion are."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from depfuse.data import DataSet
from depfuse.data.stream import batches_of
from depfuse.distributed.team import Team, run_on_all
from depfuse.distributed.team import count as count_processes
from depfuse.errors import RecipeError
from depfuse.evaluate import evaluate
from depfuse.models import check_input
from depfuse.networks.isolation import check_changeable, undisturbed
from depfuse.networks.real_state import real_state
from depfuse.progress import name, work
from depfuse.train.interfaces import EpochReport, Labels, Learner, Progress, Teacher
from depfuse.train.recipe import SAVE_SECONDS, TrainRecipe
from depfuse.train.resuming import Saving
from depfuse.train.run import Run


@undisturbed()
def train(
    model: nn.Module,
    data: DataSet,
    recipe: TrainRecipe,
    *,
    device: torch.device | str = "cpu",
    resume_path: str | Path | None = None,
    progress: Progress | None = None,
    save_seconds: float = SAVE_SECONDS,
) -> dict[str, float]:
    """Train a network in place, from the weights it has, and evaluate it on the test images.

    It is `fit`, followed by an evaluation.

    Several processes (`depfuse.distributed.team`) share every step: each takes its part of each batch, and gradients
    are those of the whole batch. BatchNorm normalises a part by its own statistics, as if batches were smaller, and
    running statistics are averaged over the processes after every epoch.

    Returns
    -------
    dict
        ``accuracy`` (fraction) and ``loss`` (nats) on the test images, ``train_accuracy`` and
        ``train_loss`` of the last epoch, ``seconds`` of training.

    Raises
    ------
    RecipeError
        A batch is too small for the number of processes.
    """
    device = torch.device(device)
    _check_parts(data, recipe)
    saving = None if resume_path is None else Saving(Path(resume_path), save_seconds)
    last = run_on_all(_fit_on_all, model, data, recipe, device, saving=saving, progress=progress)
    test = batches_of(data.required_test, data.preprocessing, batch_size=500, device=device)
    scores = evaluate(model, work().track(test, "evaluating"))
    if recipe.epochs and not math.isfinite(scores.loss):  # the last steps' losses are read nowhere else
        _forget(saving)
        raise _diverged(recipe, recipe.epochs)
    return {
        "accuracy": scores.accuracy,
        "loss": scores.loss,
        "train_accuracy": last.accuracy,
        "train_loss": last.loss,
        "seconds": last.total_seconds,
    }


@undisturbed()
def fit(
    model: nn.Module,
    data: DataSet,
    recipe: TrainRecipe,
    *,
    teacher: Teacher | Labels | Tensor | None = None,
    learner: Learner | None = None,
    device: torch.device | str = "cpu",
    saving: Saving | None = None,
    progress: Progress | None = None,
) -> EpochReport:
    """Train a network in place, from the weights it has, on labels or towards a teacher.

    The same weights, data and recipe give the same result on the same machine with the same number
    of threads; on the CPU bit for bit, also when the training was cut off and resumed in between.

    Parameters
    ----------
    model
        The network; moved to `device`, and left there in evaluation mode.
    data
        Its training images.
    recipe
        The settings of the training.
    teacher
        Where given, the loss is the divergence from its softened class scores
        (`depfuse.ensemble.targets.divergence`), and no label is read. Or soft labels that are known before: class
        probabilities (N, C) of the training images, learned in place of their labels. These are not part of what a
        state belongs to. Or labels of another kind than classes, in place of those of the images.
    learner
        Takes the steps in place of SGD; it holds the network, and the teacher if there is one. Of the recipe it is
        given the learning rate.
    device
        Where to train.
    saving
        Where and how often the state of the training is saved; never when left out.
    progress
        Called after every epoch.

    Returns
    -------
    EpochReport
        Of the last epoch, with the seconds of all.

    Raises
    ------
    DataError
        The images do not fit the network, or it has fewer outputs than there are classes.
    RecipeError
        The training diverged.
    CheckpointError
        The state at `saving.path` belongs to another training, or cannot be read or written; what had
        been saved there before is still there.
    """
    device = torch.device(device)
    _check(model, data, device, labelled=teacher is None and learner is None)
    start = None if saving is None else saving.start
    return _to_the_end(Run(model, data, recipe, device, teacher, learner, start), saving, progress)


def _fit_on_all(
    team: Team | None,
    model: nn.Module,
    data: DataSet,
    recipe: TrainRecipe,
    device: torch.device,
    *,
    saving: Saving | None = None,
    progress: Progress | None = None,
) -> EpochReport:
    """Train as `fit` does, in each of the processes that share the training; the first one saves and reports."""
    device = device if team is None else team.local_device(device)
    with undisturbed():
        _check(model, data, device)
        return _to_the_end(Run(model, data, recipe, device, team=team), saving, progress, team)


def _check(model: nn.Module, data: DataSet, device: torch.device, *, labelled: bool = True) -> None:
    """Move a network to a device, and raise `DataError` unless the images fit it and it can be changed."""
    check_changeable(model)
    model.to(device)
    check_input(model, data.example(2, device), classes=len(data.classes) if labelled else None)


def _to_the_end(run: Run, saving: Saving | None, progress: Progress | None, team: Team | None = None) -> EpochReport:
    """Resume a training from its state, or begin it, and run it to its end."""
    in_first = _call if team is None else team.in_first
    in_first(partial(run.resume, None if saving is None else saving.path))
    if team is not None:
        run.restore(team.from_first(run.state()))
    watched = work()
    watched.step(name("training"), total=(run.recipe.epochs - run.epoch) * len(run.loader))
    watched.describe(f"{name('training')}: epoch {min(run.epoch + 1, run.recipe.epochs)} of {run.recipe.epochs}")
    while run.epoch < run.recipe.epochs:
        report = run.one_epoch()
        watched.describe(f"{name('training')}: {report}")
        if not math.isfinite(report.loss):
            in_first(partial(_forget, saving))
            raise _diverged(run.recipe, run.epoch)
        in_first(partial(run.end_epoch, report, saving, progress))
    run.learner.finish()
    run.model.eval()
    if not all(tensor.isfinite().all() for tensor in real_state(run.model).values()):
        in_first(partial(_forget, saving))
        raise _diverged(run.recipe, run.epoch)
    return run.report


def _forget(saving: Saving | None) -> None:
    """Delete the state of a training that goes on nowhere: with another learning rate it would be in the way."""
    if saving is not None:
        saving.path.unlink(missing_ok=True)


def _diverged(recipe: TrainRecipe, epoch: int) -> RecipeError:
    return RecipeError(f"training diverged in epoch {epoch}: lower learning_rate {recipe.learning_rate:g}")


def _call(function: Callable[[], None]) -> None:
    function()


def _check_parts(data: DataSet, recipe: TrainRecipe) -> None:
    """Raise `RecipeError` unless every process has two images of each batch: a BatchNorm needs their variance."""
    smallest = min(recipe.batch_size, len(data.train)) // count_processes()
    if count_processes() > 1 and smallest < 2:
        raise RecipeError(
            f"batch_size {recipe.batch_size} leaves {smallest} images of {len(data.train)} to each of "
            f"{count_processes()} processes: give at least {2 * count_processes()}, or fewer processes"
        )
