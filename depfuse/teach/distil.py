"""Train a child further: by distillation from its parents' ensemble, on soft labels, and on labels."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from depfuse.data import DataSet, calibration_loader
from depfuse.data.augmentation import Augmentation
from depfuse.data.loader import Loader, calibration_order
from depfuse.ensemble.ensemble import Ensemble
from depfuse.ensemble.targets import TEMPERATURE
from depfuse.errors import ArchitectureError, DataError, DepfuseWarning
from depfuse.progress import named
from depfuse.recipe.sections import Train
from depfuse.refit import NaturalGradientTraining, Schedule, Session
from depfuse.teach.self_training import Effect, KnownLabels, SelfTraining
from depfuse.train import EpochReport, Saving, TrainRecipe, fit

WARMUP = 0.1  # of the epochs, with SGD
STATISTICS_IMAGES = 2000
COMPARED_IMAGES = 250
JUDGED_AT_ONCE = 250
PREPARING_IMAGES = 10_000
EPOCHS_PER_PIXEL = 4
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
        The training images, and for `finetune` their labels.
    resume
        Path that the names of the state files of an unfinished training begin with; None to save no state.
    progress
        Called after every epoch with what is trained, and its report.
    save_seconds
        See `Saving.seconds`.
    schedule
        Of the natural-gradient steps.

    Raises
    ------
    DataError
        The training data are no images.
    """

    data: DataSet
    resume: Path | None = field(default=None, kw_only=True)
    progress: Callable[[str, EpochReport], None] | None = field(default=None, kw_only=True)
    save_seconds: float = field(default=Saving.seconds, kw_only=True)
    schedule: Schedule = field(default=Schedule(), kw_only=True)

    def __post_init__(self) -> None:
        if self.data.train.call is not None or len(getattr(self.data.train.images, "shape", ())) != 4:
            raise DataError(
                "training is for images (N, C, H, W), and the training data are none: refit without distil,"
                " self_training and finetune"
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
            if step == "distil":
                data, judged = self._held_out(device, seed)
                learner = self._natural_gradient(model, teacher, settings, seed, session, len(data.train))
                temperature = TEMPERATURE if learner is None else learner.last_temperature
                start = _Start.of(model, teacher, judged, temperature)
            with named(f"{step}, {name}"):
                report = fit(
                    model,
                    data,
                    replace(self, data=data).train_recipe(epochs, settings.learning_rate, seed, learner),
                    teacher=teacher if step == "distil" else None,
                    learner=learner,
                    device=device,
                    saving=self._saving(name, step, f"{self._patient(settings)} {teacher.digest} {origin}"),
                    progress=None if self.progress is None else partial(self.progress, f"{step}: {name}"),
                )
            seconds[step] = report.total_seconds
            if start is not None and not start.keep_the_nearer(model):
                warnings.warn(
                    f"the {name} came no nearer to the ensemble in {epochs} epochs and stays as it was: "
                    f"lower train.learning_rate {settings.learning_rate:g}",
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
        judged = Loader(
            self.data.train.take(order[count - held :]),
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
        """Prepare natural-gradient steps; None where the network cannot be decomposed or the images are too few."""
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
        if learner is not None:
            # Shifted images are harder to learn than those as they are, and pay where each is seen many times.
            most = Augmentation.suited_to(self.data.image_shape).translate
            size = learner.batch_size(len(self.data.train))
            options = {"warmup": 0.0, "batch_size": size, "translate": min(most, epochs // EPOCHS_PER_PIXEL)}
        return TrainRecipe.suited_to(self.data, epochs=epochs, learning_rate=learning_rate, seed=seed, **options)
