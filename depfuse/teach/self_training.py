"""Train a child on soft labels of unlabelled images: its teacher's first, then those of both.

A child stops where its teacher stops, unless what makes the labels differs from what learns them. Here the labels are
the teacher's for an image and its mirror image together, which a network cannot do by itself from one image. Half of
the passes learn these. Then the child knows what the teacher does not, so the other half learns what both say together.

The smallest example is two labels that a teacher gives with 0.6 and 0.4 and the child with 0.9 and 0.1: their geometric
mean is 0.79 and 0.21.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from depfuse.data.loader import Loader
from depfuse.data.tensors import DataSet
from depfuse.ensemble.distance import at_best_scale, mean_or_infinite
from depfuse.ensemble.ensemble import Ensemble
from depfuse.errors import RecipeError
from depfuse.networks.forward import run_network
from depfuse.networks.running import evaluating
from depfuse.progress import named, work
from depfuse.train import Saving, TrainRecipe, fit
from depfuse.train.interfaces import Progress
from depfuse.train.resuming import read_state, write_state

RATE = 0.02  # highest rate of the steps, which falls as a cosine
BATCH = 250  # images in a step
STEPS = 40  # least number of steps in a pass, where images are few
FEWEST = 16  # images in a step
PREDICTED_AT_ONCE = 500
BALANCING = 50  # iterations
KNOWN = 0.1  # least share of what there is to know of the class that labels tell
KNOWN_BY_HEAD = 0.5  # of one head for all parents, which information maximisation makes confident of anything
SHIFT = 1  # pixels, of images that are not mirrored


@dataclass(frozen=True)
class Effect:
    """The effect of self-training on held-out images.

    Attributes
    ----------
    before, after
        Cross-entropy (nats) of the network's class probabilities under the teacher's, at the best scale of its scores.
    alike_before, alike_after
        Number of images for which it predicted the teacher's class.
    images
        Number of images.
    kept
        Whether the network is the one after it.
    """

    before: float
    after: float
    alike_before: float
    alike_after: float
    images: int
    kept: bool


class KnownLabels(NamedTuple):
    """Numbers (n,) of images, and their classes (n,)."""

    numbers: Tensor
    classes: Tensor


@dataclass(frozen=True, kw_only=True)
class SelfTraining:
    """Train a network in rounds on soft labels of images.

    Attributes
    ----------
    data
        The training images.
    judging
        Images held out from them.
    teacher
        Gives the labels of the first round.
    saving
        Gives where the state of a part of the training lies, by its name; None where none is saved.
    progress
        Called after every pass.
    seed
        Of the order and augmentation of the images.
    known
        Labels that are read, if any: they are taken for certain in both rounds.
    """

    data: DataSet
    judging: Loader
    teacher: Ensemble
    saving: Callable[[str], Saving | None]
    progress: Progress | None
    seed: int
    known: KnownLabels | None = None

    def train(self, model: nn.Module, passes: int) -> tuple[float, Effect]:
        r"""Train a network in place; return wall-clock seconds, and the effect.

        With the teacher's log-probabilities :math:`t`, means over the image and its mirror image, the first half of the
        passes learns :math:`\mathrm{softmax}(t)`. With the child's :math:`c` found so, the second half learns
        :math:`\mathrm{softmax}((t + c) / 2 + b)`, where the biases b of the classes give the labels the class shares
        that the teacher's have. A single pass learns the teacher's.

        The network is that after the last round where it is nearer to the teacher on the held-out images, and predicts
        its class at least as often; else that after the first, if this holds for it; else it stays as it was. Labels
        that the child helped to make cannot tell whether it drifts: the teacher's do not move. Nothing is learned from
        a teacher that tells less than `KNOWN`, or `KNOWN_BY_HEAD`, of what there is to know of the class.
        """
        judged = predict(self.teacher, self.judging, mirrored=self.mirrored)
        start, before = copy.deepcopy(model.state_dict()), predict(model, self.judging)
        taught = self._stored("labels1", lambda: predict(self.teacher, self._images, mirrored=self.mirrored))
        if known_share(taught) < (KNOWN_BY_HEAD if self.teacher.joint else KNOWN):
            return 0.0, replace(_effect(judged, before, before), kept=False)
        seconds, after_first = 0.0, None
        try:
            first = -(-passes // 2)
            seconds += self._round(model, taught, first, 1)
            if passes > first:
                after_first = copy.deepcopy(model.state_dict()), _effect(judged, before, predict(model, self.judging))
                both = self._stored("labels2", lambda: self._joined(taught, model))
                seconds += self._round(model, both, passes - first, 2)
        except RecipeError:  # it diverged
            model.load_state_dict(start)
        effect = _effect(judged, before, predict(model, self.judging))
        if not effect.kept and after_first is not None and after_first[1].kept:
            model.load_state_dict(after_first[0])
            return seconds, after_first[1]
        if not effect.kept:
            model.load_state_dict(start)
        return seconds, effect

    @property
    def mirrored(self) -> bool:
        """Whether an image and its mirror image mean the same, as is taken for colour images."""
        return self.data.suited_augmentation.flip

    @property
    def _images(self) -> Loader:
        images = replace(self.data.train, labels=None)
        return Loader(images, self.data.preprocessing, batch_size=PREDICTED_AT_ONCE, device=self.judging.device)

    def _joined(self, taught: Tensor, model: nn.Module) -> Tensor:
        own = predict(model, self._images, mirrored=self.mirrored)
        return balanced((taught + own) / 2, taught.exp().mean(0))

    def _with_known(self, labels: Tensor) -> Tensor:
        """Put the labels that are known in the place of soft ones."""
        if self.known is None:
            return labels
        known = labels.clone()
        known[self.known.numbers] = nn.functional.one_hot(self.known.classes, labels.shape[1]).to(labels)
        return known

    def _stored(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """Read labels that were made before, or make and write them: a resumed training learns the same ones."""
        saving = self.saving(name)
        if saving is None:
            return make()
        identity = {"start": saving.start}
        if saving.path.exists():
            labels: Tensor = read_state(saving.path, identity)["labels"]
            return labels
        made = make()
        write_state(saving.path, identity, {"labels": made})
        return made

    def _round(self, model: nn.Module, labels: Tensor, passes: int, number: int) -> float:
        images = len(self.data.train)
        size = max(2, min(BATCH, max(FEWEST, images // STEPS), images))
        recipe = TrainRecipe.create(
            epochs=passes,
            batch_size=size,
            learning_rate=RATE,
            schedule="cosine",
            warmup=0.0,
            label_smoothing=0.0,
            flip=self.mirrored,
            translate=SHIFT if self.data.train.pictures and not self.mirrored else 0,
            seed=self.seed + number - 1,
        )
        with named(f"self-training, round {number}"):
            report = fit(
                model,
                self.data,
                recipe,
                teacher=self._with_known(labels.exp()),
                device=self.judging.device,
                saving=self.saving(f"round{number}"),
                progress=self.progress,
            )
        return report.total_seconds


def predict(network: nn.Module | Ensemble, images: Loader, *, mirrored: bool = False) -> Tensor:
    """Compute normalised log-probabilities (N, C) of classes for images, on the CPU.

    Parameters
    ----------
    network
        One network, or the ensemble of several.
    images
        In their order.
    mirrored
        Whether they are the mean of those of the image and of its mirror image.
    """
    work().step("labelling images", total=len(images))
    found = []
    for batch, _ in images:
        logarithms = _log_probabilities(network, batch)
        if mirrored:
            logarithms = (logarithms + _log_probabilities(network, batch.flip(-1))) / 2
        found.append(logarithms.log_softmax(1).cpu())
        work().advance()
    return torch.cat(found)


def known_share(logarithms: Tensor) -> float:
    r"""Compute what labels (N, C), log-probabilities, tell of the class, as a share of all that there is to know.

    The information :math:`H(\bar p) - \overline{H(p)}` over :math:`H(\bar p)`: 0 where all labels are the class shares,
    1 where every label is certain and there are several.
    """
    probabilities = logarithms.double().exp()
    mean = probabilities.mean(0)
    of_all = float(-torch.xlogy(mean, mean).sum())
    of_each = float(-torch.xlogy(probabilities, probabilities).sum(1).mean())
    return 1 - of_each / of_all if of_all > 0 else 0.0


def balanced(logarithms: Tensor, shares: Tensor) -> Tensor:
    """Shift log-probabilities (N, C) by a bias for each class, so that their mean probabilities are `shares` (C,).

    A class that no image has keeps its bias.
    """
    wanted = shares.double().clamp_min(1e-12).log()
    found = logarithms.double().log_softmax(1)
    for _ in range(BALANCING):
        found = (found + wanted - found.exp().mean(0).clamp_min(1e-12).log()).log_softmax(1)
    return found.to(logarithms)


def _log_probabilities(network: nn.Module | Ensemble, images: Tensor) -> Tensor:
    members = network.networks if isinstance(network, Ensemble) else [network]
    with torch.no_grad(), evaluating(*members):
        outputs = [run_network(member, images).float() for member in members]
    if isinstance(network, nn.Module):
        own: Tensor = outputs[0].log_softmax(1)
        return own
    return network.combine(outputs).clamp_min(torch.finfo(torch.float32).tiny).log()


def _effect(judged: Tensor, before: Tensor, after: Tensor) -> Effect:
    """Compare log-probabilities (N, C) before and after with the teacher's."""
    wanted = judged.exp()
    distances = [mean_or_infinite(at_best_scale(own, wanted)[0]) for own in (before, after)]
    alike = [float((own.argmax(1) == wanted.argmax(1)).sum()) for own in (before, after)]
    kept = distances[1] < distances[0] and alike[1] >= alike[0]
    return Effect(distances[0], distances[1], alike[0], alike[1], len(judged), kept)
