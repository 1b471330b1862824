"""Train a child further: by distillation from its parents' ensemble, on soft labels, and on labels."""

from __future__ import annotations

import copy
import hashlib
import sys
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from depfuse.data import DataSet, calibration_loader
from depfuse.data.batches import as_loader
from depfuse.data.inputs import Ragged
from depfuse.data.loader import Loader, calibration_order
from depfuse.data.masks import MaskFiles
from depfuse.ensemble.ensemble import Ensemble
from depfuse.ensemble.targets import TEMPERATURE
from depfuse.errors import ArchitectureError, DataError, DepfuseWarning
from depfuse.networks.forward import Call, run_network
from depfuse.networks.running import evaluating
from depfuse.progress import named
from depfuse.recipe.sections import Train
from depfuse.refit import NaturalGradientTraining, Schedule, Session
from depfuse.tasks.label_kinds import UNKNOWN, are_classes, labels_for
from depfuse.tasks.outputs import CLASSES
from depfuse.tasks.regression import Regression
from depfuse.tasks.task import Task
from depfuse.teach.self_training import Effect, KnownLabels, SelfTraining
from depfuse.teach.units_of_numbers import in_their_unit
from depfuse.train import EpochReport, Saving, TrainRecipe, fit
from depfuse.train.interfaces import Labels

WARMUP = 0.1  # of the epochs, with SGD
STATISTICS_IMAGES = 2000
COMPARED_IMAGES = 250
JUDGED_AT_ONCE = 250
PREPARING_IMAGES = 10_000
EPOCHS_PER_PIXEL = 4
STEPS_OF_FEW = 4  # of SGD in an epoch, where all images would be less than one batch
FEWEST_PER_STEP = 8  # images
HELD_SHARE = 1 / 16  # of the training images: they tell whether a distilled network is nearer to its teacher
HELD_MOST = 500
STATE = 4  # of a training: another number where states of before cannot be gone on from


@dataclass(frozen=True)
class _Start:
    """The weights of a network before distillation, and its distance from the teacher."""

    state: Mapping[str, Tensor]
    distance: Callable[[nn.Module], float]
    first: float

    @classmethod
    def of(cls, model: nn.Module, teacher: Ensemble, images: Loader, temperature: float) -> _Start:
        distance = partial(teacher.divergence, images=images, temperature=temperature)
        return cls(copy.deepcopy(model.state_dict()), distance, distance(model))

    def keep_the_nearer(self, model: nn.Module) -> bool:
        """Restore the weights unless the distilled network is at least as near to the teacher; tell whether it is."""
        nearer = self.distance(model) <= self.first
        if not nearer:
            model.load_state_dict(self.state)
        return nearer


@dataclass(frozen=True)
class Trained:
    """What a training did.

    Attributes
    ----------
    seconds
        Wall-clock seconds of `distil`, `self_training` and `finetune`, where there were epochs of them.
    self_training
        The effect of self-training, where there was any.
    """

    seconds: Mapping[str, float]
    self_training: Effect | None = None


@dataclass(frozen=True)
class Distillation:
    """Train a child after fusion: by distillation from the ensemble, by self-training, then on labels.

    Attributes
    ----------
    data
        The training samples, and for `finetune` their labels: a `DataSet`, or whatever `fuse` takes for calibration.
    resume
        Path that the names of the state files of an unfinished training begin with; None to save no state.
    progress
        Called after every epoch with what is trained, and its report.
    save_seconds
        See `Saving.seconds`.
    schedule
        Of the natural-gradient steps.

    Images (N, C, H, W) are flipped and shifted as suits them (`Split.mirrored`); what is no image is taken as it is.
    """

    data: Any
    resume: Path | None = field(default=None, kw_only=True)
    progress: Callable[[str, EpochReport], None] | None = field(default=None, kw_only=True)
    save_seconds: float = field(default=Saving.seconds, kw_only=True)
    schedule: Schedule = field(default=Schedule(), kw_only=True)

    _collected: list[DataSet] = field(default_factory=list, init=False, repr=False, compare=False)

    def read(self, model: nn.Module, call: Call | None = None) -> Distillation:
        """Collect data of any kind as a data set, once.

        Parameters
        ----------
        model
            A network that takes them.
        call
            How it is run on a batch, where that is not by the inputs alone.

        Raises
        ------
        DataError
            See `as_loader`.
        """
        if isinstance(self.data, DataSet):
            return self
        if not self._collected:
            loader = as_loader(self.data, model, images=sys.maxsize, call=call, scored=True)
            self._collected.append(DataSet("the training data", (), loader.split, None, loader.preprocessing))
        return replace(self, data=self._collected[0])

    def mirroring(self, allowed: bool | None) -> Distillation:
        """Say whether the images and their mirror images mean the same."""
        return replace(self, data=replace(self.data, train=replace(self.data.train, mirrored=allowed)))

    def check(self, model: nn.Module, task: Task | None, settings: Train) -> None:
        """Raise `DataError` where labels that are to be learned do not fit a network, and say what is not augmented.

        Parameters
        ----------
        model
            A network with the outputs that the child has.
        task
            What these mean; None where nothing is known of them.
        settings
            What is learned.
        """
        if settings.finetune:
            self._labels(model, task or CLASSES)
        if not self.data.train.pictures:
            warnings.warn(
                "the training data are no images, as far as is known, and are learned as they are: nothing is flipped"
                " or shifted",
                DepfuseWarning,
                stacklevel=3,
            )

    def train(
        self,
        model: nn.Module,
        teacher: Ensemble,
        settings: Train,
        *,
        seed: int,
        name: str,
        origin: str,
        session: Session | None = None,
        labelled: int = 0,
    ) -> Trained:
        """Train a network in place, first towards the teacher, then on soft labels (`SelfTraining`), then on labels.

        Towards the teacher by natural-gradient steps (`NaturalGradient`), or by SGD where the network cannot be
        decomposed; on labels of both kinds by SGD. A sixteenth of the images is held out from what learns from the
        teacher, 500 at most: a network that comes no nearer to the teacher on them stays as it was, with a
        `DepfuseWarning`.

        Parameters
        ----------
        model
            The network; it stays on its device.
        teacher
            The ensemble that it is distilled from.
        settings
            Numbers of epochs and passes, and the learning rate.
        seed
            Of the order and augmentation of the images.
        name
            What is trained, as its state file and warnings name it.
        origin
            Whatever tells how the network came about: a training is resumed from a state of the same origin only.
        session
            The same network and teacher, where it learns the parents' streams besides their outputs.
        labelled
            The labels of so many training images, the first that calibration draws, are read by self-training as well,
            which takes them for certain.

        """
        device = next(model.parameters()).device
        seconds, effect = {}, None
        for step, epochs in (
            ("distil", settings.distil),
            ("self_training", settings.self_training),
            ("finetune", settings.finetune),
        ):
            if epochs == 0:
                continue
            if step == "self_training":
                seconds[step], effect = self._self_train(model, teacher, epochs, seed, name, origin, labelled)
                continue
            learner = start = None
            data = self.data
            target: Ensemble | Labels | None = None
            if step == "finetune":
                target = self._labels(model, teacher.task or CLASSES)
            if step == "distil":
                target = teacher
                data, judged = self._held_out(device, seed)
                learner = self._natural_gradient(model, teacher, settings, seed, session, len(data.train))
                temperature = TEMPERATURE if learner is None else learner.last_temperature
                start = _Start.of(model, teacher, judged, temperature)
            recipe = replace(self, data=data).train_recipe(epochs, settings.learning_rate, seed, learner)
            if isinstance(target, Labels) and not target.of_whole:
                recipe = recipe.model_copy(update={"flip": False, "translate": 0})
            with ExitStack() as stack:
                stack.enter_context(named(f"{step}, {name}"))
                if isinstance(target, Labels):
                    target = stack.enter_context(in_their_unit(model, target, data.example(2, device)))
                report = fit(
                    model,
                    data,
                    recipe,
                    teacher=target,
                    learner=learner,
                    device=device,
                    saving=self._saving(name, step, f"{self._patient(settings)} {teacher.digest} {origin}"),
                    progress=None if self.progress is None else partial(self.progress, f"{step}: {name}"),
                )
            seconds[step] = report.total_seconds
            if start is not None and not start.keep_the_nearer(model):
                warnings.warn(
                    f"the {name} came no nearer to the ensemble in {epochs} epochs and stays as it was: give"
                    f" more images, or lower train.learning_rate {settings.learning_rate:g}",
                    DepfuseWarning,
                    stacklevel=2,
                )
        return Trained(seconds, effect)

    def _self_train(
        self, model: nn.Module, teacher: Ensemble, passes: int, seed: int, name: str, origin: str, labelled: int
    ) -> tuple[float, Effect]:
        """Train on soft labels; warn where the network stays as it was."""
        data, judged = self._held_out(next(model.parameters()).device, seed)
        training = SelfTraining(
            data=data,
            judging=judged,
            teacher=teacher,
            saving=lambda part: self._saving(name, f"self_training-{part}", f"{teacher.digest} {origin}"),
            progress=None if self.progress is None else partial(self.progress, f"self-training: {name}"),
            seed=seed,
            known=self._known(data, seed, labelled),
        )
        with named(f"self-training, {name}"):
            seconds, effect = training.train(model, passes)
        if not effect.kept:
            warnings.warn(
                f"the {name} came no nearer to its teacher in {passes} passes of self-training, or that knows too"
                " little, and it stays as it was",
                DepfuseWarning,
                stacklevel=3,
            )
        return seconds, effect

    def _labels(self, model: nn.Module, task: Task) -> Labels:
        """Bring the labels of the training samples into the form by which a network learns them.

        Raises
        ------
        DataError
            There are none, not one for each sample, or they do not fit the outputs.
        """
        labels = self.data.train.labels
        if labels is None:
            raise DataError("train.finetune learns labels, and the training data have none: give such, or leave it out")
        labels = labels.decoded() if isinstance(labels, MaskFiles) else labels
        if are_classes(labels) and (lacking := int((labels == UNKNOWN).sum())):
            raise DataError(
                f"train.finetune learns the labels of all training samples, and {lacking} of {len(labels)} have none:"
                " leave it out; train.self_training learns from some labels"
            )
        with torch.no_grad(), evaluating(model):
            outputs = run_network(model, self.data.example(2, next(model.parameters()).device)).float()
        values = labels_for(task, labels, outputs)
        task = Regression.of_targets(values) if isinstance(task, Regression) else task
        task.label_loss(outputs, values[: len(outputs)].to(outputs.device), 0.0)  # embeddings have none under classes
        return Labels(values, task)

    def images(self, device: torch.device | str, seed: int) -> Loader:
        """Draw some of the training images, for what is fitted before the training."""
        return calibration_loader(self.data, PREPARING_IMAGES, device=device, seed=seed)

    def _known(self, data: DataSet, seed: int, labelled: int) -> KnownLabels | None:
        """Find the images whose labels are read among those to train on."""
        count = len(self.data.train)
        first = calibration_order(count, seed)
        kept = first[: len(data.train)].sort().values if len(data.train) < count else torch.arange(count)
        first = first[: min(labelled, len(data.train))]
        if not labelled or not self.data.train.of_classes:
            return None
        return KnownLabels(torch.searchsorted(kept, first), self.data.train.required_labels[first])

    def _held_out(self, device: torch.device, seed: int) -> tuple[DataSet, Loader]:
        """Hold out the last of the images that calibration draws, or none of so few that two cannot be spared."""
        count = len(self.data.train)
        held = min(HELD_MOST, round(HELD_SHARE * count))
        if held < 2:
            return self.data, self._few(device, seed)
        order = calibration_order(count, seed)
        last = order[count - held :]
        judged = Loader(
            self.data.train.take(last.sort().values if isinstance(self.data.train.images, Ragged) else last),
            self.data.preprocessing,
            batch_size=JUDGED_AT_ONCE,
            device=device,
        )
        return replace(self.data, train=self.data.train.take(order[: count - held].sort().values)), judged

    def _few(self, device: torch.device, seed: int) -> Loader:
        return calibration_loader(self.data, STATISTICS_IMAGES, device=device, seed=seed)

    def delete_states(self) -> None:
        """Delete the state files, once what was trained is saved."""
        if self.resume is not None:
            for state in self.resume.parent.glob(f"{self.resume.name}.*-*"):
                state.unlink()

    def _saving(self, name: str, step: str, origin: str) -> Saving | None:
        """Choose where the state of a step is saved, identified by its origin instead of the network's weights.

        A network that was refitted with another number of threads or on a GPU is not the same bit for bit.
        """
        if self.resume is None:
            return None
        start = hashlib.sha256(f"{STATE} {name} {step} {origin}".encode()).hexdigest()
        state = self.resume.with_name(f"{self.resume.name}.{name}-{step}")
        return Saving(state, self.save_seconds, start)

    def _patient(self, settings: Train) -> int:
        """Return the number of epochs of a long training, 0 for a short one."""
        return self.schedule.patience(settings.distil, len(self.data.train))

    def _natural_gradient(
        self, model: nn.Module, teacher: Ensemble, settings: Train, seed: int, session: Session | None, images: int
    ) -> NaturalGradientTraining | None:
        """Prepare natural-gradient steps; None where the network cannot be decomposed or the images are too few.

        Nor are there any of samples of several shapes.
        """
        if isinstance(self.data.train.images, Ragged):
            return None
        device = next(model.parameters()).device
        try:
            if session is None:
                few = self._few(device, seed)
                session = Session.towards(model.eval(), teacher, few, seed=seed, task=teacher.task)
            # Others than those that the network was fitted to, which any training makes worse at first.
            compared = calibration_loader(self.data, COMPARED_IMAGES, device=device, seed=seed + 1)
            # Images seen many times are memorised; mixtures of them never repeat.
            learner = session.training(compared, patient=self._patient(settings), schedule=self.schedule)
        except ArchitectureError:
            return None
        return learner if learner.batch_size(images) else None

    def train_recipe(
        self, epochs: int, learning_rate: float, seed: int, learner: NaturalGradientTraining | None
    ) -> TrainRecipe:
        """Choose the settings of the training loop: by SGD, or for a learner that takes other steps."""
        options: dict[str, float] = {"warmup": WARMUP * epochs, "label_smoothing": 0.0}
        if (count := len(self.data.train)) < TrainRecipe.create().batch_size:
            options["batch_size"] = max(FEWEST_PER_STEP, count // STEPS_OF_FEW)
        if learner is not None:
            # Shifted images are harder to learn than those as they are, and pay where each is seen many times.
            most = self.data.suited_augmentation.translate
            size = learner.batch_size(count)
            options = {"warmup": 0.0, "batch_size": size, "translate": min(most, epochs // EPOCHS_PER_PIXEL)}
        return TrainRecipe.suited_to(self.data, epochs=epochs, learning_rate=learning_rate, seed=seed, **options)
