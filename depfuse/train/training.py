"""Train a network on a data set: the parents of a fusion."""

from __future__ import annotations

import io
import math
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from depfuse.data import Augmentation, DataSet, Loader
from depfuse.data.loader import epoch_seed
from depfuse.distributed import team as processes
from depfuse.distributed.team import Team, together
from depfuse.ensemble.targets import divergence
from depfuse.errors import CheckpointError, RecipeError
from depfuse.evaluate import evaluate
from depfuse.io.atomic_files import replacing
from depfuse.io.checkpoint import state_digest
from depfuse.models import check_input
from depfuse.networks.isolation import check_changeable, seeded, undisturbed
from depfuse.networks.layout import differentiable, takes_channels_last
from depfuse.networks.running import bfloat16_pays, evaluating
from depfuse.tasks.outputs import distance_of

Schedule = Literal["linear", "cosine"]
Precision = Literal["auto", "float32", "bfloat16"]

# Compiling takes about as long as this many steps of a small network save.
_STEPS_THAT_PAY_FOR_COMPILING = 2000
# On smaller images converting to bfloat16 and back takes longer than it saves on a CPU.
_PIXELS_THAT_PAY_FOR_BFLOAT16 = 16 * 16


class TrainRecipe(BaseModel):
    """How a network is trained: SGD with Nesterov momentum, a warm-up, then a decay to zero.

    Weight decay is for the weights of convolutions and linear layers; biases and BatchNorm have none.
    `TrainRecipe.create` raises `RecipeError` with one sentence where a setting is wrong.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(20, ge=0, description="passes over the training images")
    batch_size: int = Field(128, ge=2, description="images per step")
    learning_rate: float = Field(0.2, gt=0, description="at the end of the warm-up")
    momentum: float = Field(0.9, ge=0, lt=1, description="Nesterov's")
    weight_decay: float = Field(5e-4, ge=0, description="of convolutions and linear layers")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="share of the target spread over all classes")
    warmup: float = Field(2.0, ge=0, description="epochs in which the learning rate rises from zero")
    schedule: Schedule = Field("linear", description="how it falls to zero afterwards")
    flip: bool = Field(False, description="mirror images at random")
    translate: int = Field(0, ge=0, description="shift images by up to this many pixels")
    cutout: int = Field(0, ge=0, description="side in pixels of a square that is blacked out")
    precision: Precision = Field("auto", description="bfloat16 autocast; auto: where it is faster")
    channels_last: bool = Field(True, description="memory layout of images and weights, where the network can take it")
    compile: bool | None = Field(None, description="torch.compile; None: on CUDA where training is long enough")
    seed: int = Field(0, ge=0, le=2**63 - 1, description="of the order of the images and their augmentation")

    @classmethod
    def create(cls, **settings: Any) -> TrainRecipe:
        """Build a recipe; a `RecipeError` names the first setting that is wrong and why."""
        try:
            return cls(**settings)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "recipe"
            raise RecipeError(f"training setting {where}: {first['msg'].removeprefix('Value error, ')}") from None

    @classmethod
    def suited_to(cls, data: DataSet, **settings: Any) -> TrainRecipe:
        """Build a recipe whose augmentation suits the images, where `settings` do not say otherwise."""
        suited = Augmentation.suited_to(data.image_shape)
        return cls.create(**{"flip": suited.flip, "translate": suited.translate, **settings})

    @property
    def augmentation(self) -> Augmentation:
        """What happens to the training images."""
        return Augmentation(self.flip, self.translate, self.cutout)

    def learning_rate_at(self, epoch: float) -> float:
        """Compute the learning rate `epoch` epochs after the start, a fraction within an epoch."""
        warmup = min(self.warmup, self.epochs / 2)
        if epoch < warmup:
            return self.learning_rate * epoch / warmup
        progress = min(1.0, (epoch - warmup) / max(self.epochs - warmup, 1e-12))
        if self.schedule == "cosine":
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
        return self.learning_rate * (1 - progress)


@dataclass(frozen=True)
class EpochReport:
    """Where a training stands: `epoch` of `epochs` are done.

    `loss` and `accuracy` are means over the epoch's training batches (with a teacher, `accuracy` is how often the
    network chooses its class), `learning_rate` is that of the last step, `seconds` is what the epoch took, and
    `total_seconds` what all did so far.
    """

    epoch: int
    epochs: int
    loss: float
    accuracy: float
    learning_rate: float
    seconds: float
    total_seconds: float


Progress = Callable[[EpochReport], None]


class Teacher(Protocol):
    """What a network learns instead of labels."""

    @property
    def digest(self) -> str:
        """Tells one teacher from another."""

    def __call__(self, images: Tensor, /) -> Tensor:
        """Logits (N, C) for images, without gradients."""


class Learner(Protocol):
    """Moves a network's weights, one batch of training images after another."""

    def begin_epoch(self) -> None:
        """Called before every epoch."""

    def step(self, images: Tensor, labels: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        """Learn one batch at a learning rate; give its loss, summed over images, and how many it named rightly."""

    def finish(self) -> None:
        """Called once after the last epoch: leave the network as it shall be used."""

    def state_dict(self) -> dict[str, Any]:
        """All that changes from epoch to epoch, the network's weights included."""

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Go on from what `state_dict` gave."""


@undisturbed()
def train(
    model: nn.Module,
    data: DataSet,
    recipe: TrainRecipe,
    *,
    device: torch.device | str = "cpu",
    resume_path: str | Path | None = None,
    progress: Progress | None = None,
    save_seconds: float = 30.0,
) -> dict[str, float]:
    """Train a network in place, from the weights it has, and say what it reached.

    See `fit`, which it is, followed by an evaluation.

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
    last = together(
        _fit_together,
        model,
        data,
        recipe,
        device,
        resume_path=resume_path,
        progress=progress,
        save_seconds=save_seconds,
    )
    scores = evaluate(model, Loader(data.test, data.preprocessing, batch_size=500, device=device))
    return {
        "accuracy": scores.accuracy,
        "loss": scores.loss,
        "train_accuracy": last.accuracy,
        "train_loss": last.loss,
        "seconds": last.total_seconds,
    }


def _check_parts(data: DataSet, recipe: TrainRecipe) -> None:
    """Raise `RecipeError` unless every process has two images of each batch: a BatchNorm needs their variance."""
    smallest = min(recipe.batch_size, len(data.train)) // processes.count()
    if processes.count() > 1 and smallest < 2:
        raise RecipeError(
            f"batch_size {recipe.batch_size} leaves {smallest} images of {len(data.train)} to each of "
            f"{processes.count()} processes: give at least {2 * processes.count()}, or fewer processes"
        )


def _fit_together(
    team: Team | None, model: nn.Module, data: DataSet, recipe: TrainRecipe, device: torch.device, **own: Any
) -> EpochReport:
    return fit(model, data, recipe, device=device if team is None else team.own(device), team=team, **own)


@undisturbed()
def fit(
    model: nn.Module,
    data: DataSet,
    recipe: TrainRecipe,
    *,
    teacher: Teacher | None = None,
    learner: Learner | None = None,
    device: torch.device | str = "cpu",
    resume_path: str | Path | None = None,
    progress: Progress | None = None,
    save_seconds: float = 30.0,
    start: str | None = None,
    team: Team | None = None,
) -> EpochReport:
    """Train a network in place, from the weights it has, on labels or on what a teacher says.

    The same weights, data and recipe give the same result on the same machine with the same number
    of threads; on the CPU bit for bit, also when the training was cut off and resumed in between.

    Parameters
    ----------
    model
        The network; moved to `device`, and left there in evaluation mode.
    data
        Its training images.
    recipe
        How to train.
    teacher
        Where given, the loss is the divergence from its softened class scores (`teaching.divergence`), and no label is
        read.
    learner
        What takes the steps in place of SGD; it knows the network, and the teacher if there is one. Of the recipe
        it is given the learning rate.
    device
        Where to train.
    resume_path
        Where the state of the training is kept. A training that finds its own state there goes on
        from it. The finished training stays there as well: delete the file once the result is kept.
    progress
        Called after every epoch.
    save_seconds
        The state is saved at the end of an epoch when so much time has passed since the last time, and
        at the very end.
    team
        Processes that share the training by SGD on labels; all of them call this, the first one alone with
        `resume_path` and `progress`.

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
        The state at `resume_path` belongs to another training, or cannot be read or written; what had
        been saved there before is still there.
    """
    device = torch.device(device)
    check_changeable(model)
    model.to(device)
    check_input(model, data.example(2, device), classes=len(data.classes))
    run = _Run(model, data, recipe, device, teacher, learner, start, team)
    path = None if resume_path is None else Path(resume_path)
    in_first = _call if team is None else team.in_first
    in_first(partial(run.resume, path))
    if team is not None:
        run.restore(team.agreed(run.state()))
    while run.epoch < recipe.epochs:
        report = run.one_epoch()
        if not math.isfinite(report.loss):
            raise RecipeError(f"training diverged in epoch {run.epoch}: lower learning_rate {recipe.learning_rate:g}")
        in_first(partial(run.end_epoch, report, path, save_seconds, progress))
    run.learner.finish()
    model.eval()
    return run.report


def _call(function: Callable[[], None]) -> None:
    function()


class _Descent:
    """SGD on labels, or towards a teacher."""

    def __init__(
        self,
        model: nn.Module,
        recipe: TrainRecipe,
        device: torch.device,
        *,
        teacher: Teacher | None,
        fast: bool,
        steps: int,
    ) -> None:
        self.model, self.recipe, self.teacher, self.device, self.fast = model, recipe, teacher, device, fast
        weights = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
        others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
        self.optimizer = torch.optim.SGD(
            [
                {"params": weights, "weight_decay": recipe.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            nesterov=recipe.momentum > 0,
        )
        compiled = recipe.compile
        if compiled and device.type == "cpu":  # the compiler chooses layouts itself, also those of `networks.layout`
            raise RecipeError("compile is for CUDA: leave it out on a CPU")
        if compiled is None:
            compiled = device.type == "cuda" and steps >= _STEPS_THAT_PAY_FOR_COMPILING
        running = self._running()
        self.forward: Callable[[Tensor], Tensor] = torch.compile(running) if compiled else running

    def _running(self) -> nn.Module:
        return self.model

    def begin_epoch(self) -> None:
        self.model.train()

    def step(self, images: Tensor, labels: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with differentiable(self.device), torch.autocast(self.device.type, torch.bfloat16, enabled=self.fast):
            wanted = labels if self.teacher is None else self.teacher(images)
            outputs = self.forward(images)
        outputs = outputs.float()
        if self.teacher is None:
            loss = F.cross_entropy(outputs, wanted, label_smoothing=self.recipe.label_smoothing)
        else:
            loss = divergence(outputs, wanted.float()) / len(wanted)
        self.optimizer.zero_grad(set_to_none=True)
        self._weighted(loss, len(labels)).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        given = outputs.detach()
        alike = (given.argmax(1) == labels).sum() if self.teacher is None else distance_of(given).alike(given, wanted)
        return loss.detach() * len(labels), alike

    def _weighted(self, loss: Tensor, count: int) -> Tensor:
        return loss

    def finish(self) -> None:
        self.model.to(memory_format=torch.contiguous_format)

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


class _SharedDescent(_Descent):
    """SGD on labels by several processes, each of which sees its part of every batch."""

    def __init__(
        self,
        model: nn.Module,
        recipe: TrainRecipe,
        device: torch.device,
        *,
        team: Team,
        batch: int,
        **own: Any,
    ) -> None:
        self.team, self.batch = team, batch
        super().__init__(model, recipe, device, teacher=None, **own)

    def _running(self) -> nn.Module:
        with warnings.catch_warnings():
            # Newer versions of torch have another name for it, which older ones do not know.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            return nn.parallel.DistributedDataParallel(self.model, broadcast_buffers=False)

    def _weighted(self, loss: Tensor, count: int) -> Tensor:
        # The mean of these over processes is the mean over the whole batch, where its parts are not equal too.
        return loss * (count * self.team.size / self.batch)

    def end_epoch(self, *figures: Tensor) -> list[Tensor]:
        """Give BatchNorms the mean of what they saw in all processes; the sums of figures."""
        for buffer in self.model.buffers():
            if buffer.is_floating_point():
                buffer.copy_(self.team.add(buffer.double()) / self.team.size)
        return [self.team.add(figure) for figure in figures]


class _Run:
    """A training under way: everything that changes from epoch to epoch."""

    def __init__(
        self,
        model: nn.Module,
        data: DataSet,
        recipe: TrainRecipe,
        device: torch.device,
        teacher: Teacher | None = None,
        learner: Learner | None = None,
        start: str | None = None,
        team: Team | None = None,
    ) -> None:
        self.recipe = recipe
        self.device = device
        self.epoch = 0
        self.loss = self.accuracy = math.nan
        self.seconds = 0.0
        self.saved = time.perf_counter()
        self.loader = Loader(
            data.train,
            data.preprocessing,
            batch_size=recipe.batch_size,
            device=device,
            shuffle=True,
            augment=recipe.augmentation,
            seed=recipe.seed,
            drop_last=True,
        )
        self.identity = {
            "recipe": recipe.model_dump(mode="json"),
            "data": state_digest({"images": data.train.images, "labels": data.train.labels}),
            "start": state_digest(model.state_dict()) if start is None else start,
            "teacher": None if teacher is None else teacher.digest,
        }
        if recipe.channels_last:
            self.loader.channels_last = _in_channels_last(model, data.example(2, device), weights=learner is None)
        if learner is None:
            fast = _use_bfloat16(recipe.precision, device, data.image_shape)
            steps = recipe.epochs * len(self.loader)
            own: dict[str, Any] = {"fast": fast, "steps": steps}
            if team is None:
                learner = _Descent(model, recipe, device, teacher=teacher, **own)
            else:
                self.loader.part = team.rank, team.size
                batch = min(recipe.batch_size, self.loader.count)
                learner = _SharedDescent(model, recipe, device, team=team, batch=batch, **own)
        self.learner = learner

    @property
    def report(self) -> EpochReport:
        """Where it stands after the epochs so far."""
        rate = self.recipe.learning_rate_at(self.epoch)
        return EpochReport(self.epoch, self.recipe.epochs, self.loss, self.accuracy, rate, 0.0, self.seconds)

    def one_epoch(self) -> EpochReport:
        """Take one pass over the training images."""
        started = time.perf_counter()
        self.learner.begin_epoch()
        self.loader.epoch = self.epoch
        # Dropout draws from the process's generator: the same after a training was cut off, its own in each process.
        rank = (self.learner.team.rank,) if isinstance(self.learner, _SharedDescent) else ()
        draws = isinstance(self.learner, _Descent)
        with seeded(epoch_seed(self.recipe.seed, self.epoch, *rank), self.device) if draws else nullcontext():
            total, hits, count, rate = self._steps()
        self.epoch += 1
        if isinstance(self.learner, _SharedDescent):
            total, hits, counted = self.learner.end_epoch(total.double(), hits, torch.tensor(count))
            count = int(counted)
        self.loss, self.accuracy = float(total) / count, int(hits) / count
        seconds = time.perf_counter() - started
        self.seconds += seconds
        return replace(self.report, learning_rate=rate, seconds=seconds)

    def _steps(self) -> tuple[Tensor, Tensor, int, float]:
        """The steps of an epoch: the sum of losses, the numbers of hits and of images, and the last learning rate."""
        total = torch.zeros((), dtype=torch.float32, device=self.device)
        hits = torch.zeros((), device=self.device, dtype=torch.int64)
        count = 0
        rate = 0.0
        for step, (images, labels) in enumerate(self.loader):
            rate = self.recipe.learning_rate_at(self.epoch + (step + 1) / (len(self.loader) + 1))
            loss, named = self.learner.step(images, labels, rate)
            # Sums stay on the device: reading them would make it wait for every step.
            total += loss
            hits += named
            count += len(labels)
        return total, hits, count, rate

    def end_epoch(self, report: EpochReport, path: Path | None, seconds: float, progress: Progress | None) -> None:
        """Save the state at the end, and where so much time has passed since the last time; say where it stands."""
        done = self.epoch == self.recipe.epochs
        if path is not None and (done or time.perf_counter() - self.saved >= seconds):
            self.save(path)
            self.saved = time.perf_counter()
        if progress is not None:
            progress(report)

    def save(self, path: Path) -> None:
        """Write the whole state, all or nothing."""
        # Through memory, because torch.save does not say in the usual way that a disk is full.
        buffer = io.BytesIO()
        torch.save({"identity": self.identity, **self.state()}, buffer)
        with replacing(path) as temporary:
            temporary.write_bytes(buffer.getbuffer())

    def state(self) -> dict[str, Any]:
        """All that changes from epoch to epoch."""
        return {
            "epoch": self.epoch,
            "figures": [self.loss, self.accuracy, self.seconds],
            "learner": self.learner.state_dict(),
        }

    def resume(self, path: Path | None) -> None:
        """Go on from the state at `path`, if there is one."""
        if path is None or not path.exists():
            return
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            identity = dict(state["identity"])
        except Exception:  # torch has no one exception for a broken file
            raise CheckpointError(f"{path} is not the state of a training: delete it to start afresh") from None
        different = [key for key in self.identity if identity.get(key) != self.identity[key]]
        if different:
            what = {"recipe": "recipe", "data": "data set", "start": "network or seed", "teacher": "teacher"}[
                different[0]
            ]
            raise CheckpointError(
                f"{path} is the state of a training with another {what}: "
                f"give another path, or delete it to start afresh"
            )
        try:
            self.restore(state)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(
                f"{path} is not the state of this training ({reason}): delete it to start afresh"
            ) from None

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.learner.load_state_dict(state["learner"])
        self.epoch = state["epoch"]
        self.loss, self.accuracy, self.seconds = state["figures"]


def _in_channels_last(model: nn.Module, images: Tensor, *, weights: bool) -> bool:
    """Give a network weights in channels-last layout, where it runs in that; whether it does."""
    if weights:
        model.to(memory_format=torch.channels_last)
    with evaluating(model):
        possible = takes_channels_last(model, images)
    if not possible:
        model.to(memory_format=torch.contiguous_format)
    return possible


def _use_bfloat16(precision: Precision, device: torch.device, image_shape: tuple[int, int, int]) -> bool:
    if precision != "auto":
        return precision == "bfloat16"
    enough = device.type == "cuda" or image_shape[1] * image_shape[2] >= _PIXELS_THAT_PAY_FOR_BFLOAT16
    return enough and bfloat16_pays(device)
