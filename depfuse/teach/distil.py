"""Train a child further: by distillation from its parents' ensemble, on soft labels, and on labels."""

from __future__ import annotations

import copy
import hashlib
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from depfuse.data import DataSet, calibration_loader
from depfuse.data.batches import as_loader
from depfuse.data.inputs import Ragged
from depfuse.data.loader import Loader
from depfuse.ensemble.ensemble import Ensemble
from depfuse.ensemble.targets import TEMPERATURE
from depfuse.errors import ArchitectureError, DepfuseWarning
from depfuse.models.inputs import check_input
from depfuse.networks.copying import fit_example
from depfuse.networks.forward import Call
from depfuse.progress import named
from depfuse.recipe.sections import Train
from depfuse.refit import NaturalGradientTraining, Schedule, Session
from depfuse.tasks.outputs import CLASSES
from depfuse.tasks.task import Task
from depfuse.teach.labels_to_learn import labels_to_learn
from depfuse.teach.self_training import Effect, SelfTraining
from depfuse.teach.training_images import few_images, hold_out, known_labels
from depfuse.teach.units_of_numbers import in_their_unit
from depfuse.train import EpochReport, Saving, TrainRecipe, fit
from depfuse.train.interfaces import Labels

WARMUP = 0.1  # of the epochs, with SGD
COMPARED_IMAGES = 250
PREPARING_IMAGES = 10_000
EPOCHS_PER_PIXEL = 4
STEPS_OF_FEW = 4  # of SGD in an epoch, where all images would be less than one batch
FEWEST_PER_STEP = 8  # images
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
        """Raise `DataError` where images or labels do not fit a network, and say what is not augmented.

        Parameters
        ----------
        model
            A network with the outputs that the child has.
        task
            What these mean; None where nothing is known of them.
        settings
            What is learned.
        """
        check_input(model, fit_example(self.data.example(), model))
        if settings.finetune:
            labels_to_learn(self.data, model, task or CLASSES)
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
        run = _Run(self, model, teacher, settings, seed, name, origin)
        seconds, effect = {}, None
        if settings.distil:
            seconds["distil"] = run.distil(session)
        if settings.self_training:
            seconds["self_training"], effect = run.self_train(labelled)
        if settings.finetune:
            seconds["finetune"] = run.finetune()
        return Trained(seconds, effect)

    def images(self, device: torch.device | str, seed: int) -> Loader:
        """Draw some of the training images, for what is fitted before the training."""
        return calibration_loader(self.data, PREPARING_IMAGES, device=device, seed=seed)

    def delete_states(self) -> None:
        """Delete the state files, once what was trained is saved."""
        if self.resume is not None:
            for state in self.resume.parent.glob(f"{self.resume.name}.*-*"):
                state.unlink()

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


@dataclass(frozen=True, eq=False)
class _Run:
    """The training of one network; see `Distillation.train`."""

    training: Distillation
    model: nn.Module
    teacher: Ensemble
    settings: Train
    seed: int
    name: str
    origin: str

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.model.parameters()).device

    def distil(self, session: Session | None) -> float:
        """Take steps towards the teacher; return seconds. Warn where the network stays as it was."""
        epochs = self.settings.distil
        data, judged = hold_out(self.training.data, self.device, self.seed)
        learner = self._natural_gradient(session, len(data.train))
        temperature = TEMPERATURE if learner is None else learner.last_temperature
        start = _Start.of(self.model, self.teacher, judged, temperature)
        seconds = self._fit("distil", epochs, data, self.teacher, learner)
        if not start.keep_the_nearer(self.model):
            warnings.warn(
                f"the {self.name} came no nearer to the ensemble in {epochs} epochs and stays as it was: give"
                f" more images, or lower train.learning_rate {self.settings.learning_rate:g}",
                DepfuseWarning,
                stacklevel=3,
            )
        return seconds

    def self_train(self, labelled: int) -> tuple[float, Effect]:
        """Train on soft labels; return seconds and the effect. Warn where the network stays as it was."""
        data, judged = hold_out(self.training.data, self.device, self.seed)
        training = SelfTraining(
            data=data,
            judging=judged,
            teacher=self.teacher,
            saving=lambda part: self._saving(f"self_training-{part}", f"{self.teacher.digest} {self.origin}"),
            progress=self._progress("self-training"),
            seed=self.seed,
            known=known_labels(self.training.data, len(data.train), self.seed, labelled),
        )
        with named(f"self-training, {self.name}"):
            seconds, effect = training.train(self.model, self.settings.self_training)
        if not effect.kept:
            warnings.warn(
                f"the {self.name} came no nearer to its teacher in {self.settings.self_training} passes of"
                " self-training, or that knows too little, and it stays as it was",
                DepfuseWarning,
                stacklevel=3,
            )
        return seconds, effect

    def finetune(self) -> float:
        """Learn the labels of all images; return seconds."""
        data = self.training.data
        labels = labels_to_learn(data, self.model, self.teacher.task or CLASSES)
        with in_their_unit(self.model, labels, data.example(2, self.device)) as target:
            return self._fit("finetune", self.settings.finetune, data, target)

    def _fit(
        self,
        step: str,
        epochs: int,
        data: DataSet,
        target: Ensemble | Labels,
        learner: NaturalGradientTraining | None = None,
    ) -> float:
        own = replace(self.training, data=data)
        recipe = own.train_recipe(epochs, self.settings.learning_rate, self.seed, learner)
        if isinstance(target, Labels) and not target.of_whole:
            recipe = recipe.model_copy(update={"flip": False, "translate": 0})
        with named(f"{step}, {self.name}"):
            report = fit(
                self.model,
                data,
                recipe,
                teacher=target,
                learner=learner,
                device=self.device,
                saving=self._saving(step, f"{self._patience} {self.teacher.digest} {self.origin}"),
                progress=self._progress(step),
            )
        return report.total_seconds

    def _progress(self, step: str) -> Callable[[EpochReport], None] | None:
        told = self.training.progress
        return None if told is None else partial(told, f"{step}: {self.name}")

    def _saving(self, step: str, origin: str) -> Saving | None:
        """Choose where the state of a step is saved, identified by its origin instead of the network's weights.

        A network that was refitted with another number of threads or on a GPU is not the same bit for bit.
        """
        resume = self.training.resume
        if resume is None:
            return None
        start = hashlib.sha256(f"{STATE} {self.name} {step} {origin}".encode()).hexdigest()
        return Saving(resume.with_name(f"{resume.name}.{self.name}-{step}"), self.training.save_seconds, start)

    @property
    def _patience(self) -> int:
        """The number of epochs of a long training, 0 for a short one."""
        return self.training.schedule.patience(self.settings.distil, len(self.training.data.train))

    def _natural_gradient(self, session: Session | None, images: int) -> NaturalGradientTraining | None:
        """Prepare natural-gradient steps; None where the network cannot be decomposed or the images are too few.

        Nor are there any of samples of several shapes.
        """
        data = self.training.data
        if isinstance(data.train.images, Ragged):
            return None
        try:
            if session is None:
                few = few_images(data, self.device, self.seed)
                session = Session.towards(self.model.eval(), self.teacher, few, seed=self.seed, task=self.teacher.task)
            # Others than those that the network was fitted to, which any training makes worse at first.
            compared = calibration_loader(data, COMPARED_IMAGES, device=self.device, seed=self.seed + 1)
            # Images seen many times are memorised; mixtures of them never repeat.
            learner = session.training(compared, patient=self._patience, schedule=self.training.schedule)
        except ArchitectureError:
            return None
        return learner if learner.batch_size(images) else None
