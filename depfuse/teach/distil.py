"""Training a child on: towards its parents' ensemble without labels, and with them."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from depfuse.data import DataSet, calibration_loader
from depfuse.data.augmentation import Augmentation
from depfuse.data.loader import Loader
from depfuse.ensemble.ensemble import Ensemble
from depfuse.ensemble.targets import TEMPERATURE
from depfuse.errors import ArchitectureError, DepfuseWarning
from depfuse.recipe import Recipe
from depfuse.refit import NaturalGradientTraining, Session
from depfuse.train import EpochReport, Saving, TrainRecipe, fit

WARMUP = 0.1  # of the epochs, with SGD
STATISTICS_IMAGES = 2000
COMPARED_IMAGES = 250
PREPARING_IMAGES = 10_000
EPOCHS_PER_PIXEL = 4
PATIENT_EPOCHS = 8
PATIENT_IMAGES = 300_000  # in all epochs; short steps need to be many
STATE = 3  # of a training: another number where states of before cannot be gone on from


@dataclass(frozen=True)
class _Start:
    """A network before it is distilled, and what it shall come nearer to."""

    state: Mapping[str, Tensor]
    distance: Callable[[nn.Module], float]
    first: float

    @classmethod
    def of(cls, model: nn.Module, teacher: Ensemble, images: Loader, temperature: float) -> _Start:
        distance = partial(teacher.divergence, images=images, temperature=temperature)
        return cls(copy.deepcopy(model.state_dict()), distance, distance(model))

    def keep_the_nearer(self, model: nn.Module) -> bool:
        """Whether that is the distilled network; the model becomes what it was where it is not."""
        nearer = self.distance(model) <= self.first
        if not nearer:
            model.load_state_dict(self.state)
        return nearer


@dataclass(frozen=True)
class Distillation:
    """Training after fusion, by `distil` and `finetune` of the recipe of the fusion.

    Attributes
    ----------
    data
        The training images, and for `finetune` their labels.
    resume
        Where the state of an unfinished training is kept, None for nowhere; see `states`.
    progress
        Called after every epoch with what is trained.
    """

    data: DataSet
    resume: Path | None = field(default=None, kw_only=True)
    progress: Callable[[str, EpochReport], None] | None = field(default=None, kw_only=True)

    def train(
        self, model: nn.Module, teacher: Ensemble, name: str, recipe: Recipe, together: Session | None = None
    ) -> dict[str, float]:
        """Train a network in place, first towards the teacher, then on labels; return the seconds of each.

        Towards the teacher by natural-gradient steps (`NaturalGradient`), or by SGD where the network cannot be taken
        apart; on labels by SGD. A network that came no nearer to the teacher stays as it was, with a `DepfuseWarning`.

        Parameters
        ----------
        model
            The network; it stays on its device.
        teacher
            What it learns while it is distilled.
        name
            Tells its state file from others'.
        recipe
            Numbers of epochs, learning rate and seed.
        together
            The same network and teacher, where it shall be taught more than class scores.
        """
        device = next(model.parameters()).device
        seconds = {}
        for step, epochs in (("distil", recipe.train.distil), ("finetune", recipe.train.finetune)):
            if epochs == 0:
                continue
            learner = start = None
            if step == "distil":
                learner = self._natural(model, teacher, recipe, together)
                temperature = TEMPERATURE if learner is None else learner.last_temperature
                start = _Start.of(model, teacher, self._few(device, recipe.seed), temperature)
            report = fit(
                model,
                self.data,
                self._settings(epochs, recipe, learner),
                teacher=teacher if step == "distil" else None,
                learner=learner,
                device=device,
                saving=self._saving(name, step, teacher, recipe),
                progress=None if self.progress is None else partial(self.progress, f"{step}: {name}"),
            )
            seconds[step] = report.total_seconds
            if start is not None and not start.keep_the_nearer(model):
                warnings.warn(
                    f"the {name} came no nearer to the ensemble in {epochs} epochs and stays as it was: "
                    f"lower train.learning_rate {recipe.train.learning_rate:g}",
                    DepfuseWarning,
                    stacklevel=2,
                )
        return seconds

    def images(self, device: torch.device | str, seed: int) -> Loader:
        """Some of the training images, for what is found before the training."""
        return calibration_loader(self.data, PREPARING_IMAGES, device=device, seed=seed)

    def _few(self, device: torch.device, seed: int) -> Loader:
        return calibration_loader(self.data, STATISTICS_IMAGES, device=device, seed=seed)

    def done(self) -> None:
        """Delete the states: everything that was trained has been kept."""
        if self.resume is not None:
            for state in self.resume.parent.glob(f"{self.resume.name}.*-*"):
                state.unlink()

    def _saving(self, name: str, step: str, teacher: Ensemble, recipe: Recipe) -> Saving | None:
        """Where the state of a step is kept; it knows its start by what led there.

        A network that was refitted with other threads or on a GPU is not the same bit for bit.
        """
        if self.resume is None:
            return None
        described = f"{STATE} {name} {step} {self._patient(recipe)} {teacher.digest} {recipe.model_dump_json()}"
        start = hashlib.sha256(described.encode()).hexdigest()
        return Saving(self.resume.with_name(f"{self.resume.name}.{name}-{step}"), start=start)

    def _patient(self, recipe: Recipe) -> int:
        """The number of epochs, 0 where it is not a long training."""
        epochs = recipe.train.distil
        return epochs if epochs >= PATIENT_EPOCHS and epochs * len(self.data.train) >= PATIENT_IMAGES else 0

    def _natural(
        self, model: nn.Module, teacher: Ensemble, recipe: Recipe, together: Session | None
    ) -> NaturalGradientTraining | None:
        device = next(model.parameters()).device
        try:
            if together is None:
                together = Session.towards(model.eval(), teacher, self._few(device, recipe.seed), seed=recipe.seed)
            # Others than those that the network was fitted to, which any training makes worse at first.
            seed = recipe.seed + 1
            compared = calibration_loader(self.data, COMPARED_IMAGES, device=device, seed=seed)
            # Seen many times, images are known by heart; between them there is always something new to learn.
            learner = together.training(compared, patient=self._patient(recipe))
        except ArchitectureError:
            return None
        return learner if learner.batch_size(len(self.data.train)) else None

    def _settings(self, epochs: int, recipe: Recipe, learner: NaturalGradientTraining | None) -> TrainRecipe:
        own: dict[str, float] = {"warmup": WARMUP * epochs, "label_smoothing": 0.0}
        if learner is not None:
            # Shifted images are harder to learn than those as they are, and pay where each is seen many times.
            most = Augmentation.suited_to(self.data.image_shape).translate
            size = learner.batch_size(len(self.data.train))
            own = {"warmup": 0.0, "batch_size": size, "translate": min(most, epochs // EPOCHS_PER_PIXEL)}
        return TrainRecipe.suited_to(
            self.data,
            epochs=epochs,
            learning_rate=recipe.train.learning_rate,
            seed=recipe.seed,
            **own,
        )
