"""Detection, from a network's first BatchNorm, of images normalised otherwise than in training.

Where everything between the input and a BatchNorm is linear, its running statistics follow from the images of the
training and from their normalisation. For images x in [0, 1] with channels c, normalised to a_c x_c + b_c
(a = 1 / std, b = -mean / std), the input of the BatchNorm's channel k is r_k0 + sum_c a_c r_kc(x_c) + b_c s_kc, where
r_kc is the response to channel c alone, s_kc that to ones, and r_k0 that to zeros. Means and covariances of these
responses over images and positions, padding included, give the statistics at any a and b; a fit finds a and b.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import least_squares
from torch import Tensor, nn

from depfuse.networks.forward import run_network
from depfuse.networks.running import removing
from depfuse.renorm.reset import BATCH_NORM

IMAGES = 128  # to take statistics of
FEWEST_IMAGES = 32  # of large images
PLACES = 2**18  # positions of all images, above which fewer images are taken
CHUNK = 2**24  # numbers in memory at a time
LINEAR = 1e-3  # relative deviation up to which a response counts as linear in float32
# In nats, measured on ResNets for CIFAR-10: images normalised as in training are at most 0.09 away, those of CIFAR-100
# as well, digits on black 0.5; a forgotten normalisation is 2 away, one from -1 to 1 instead of ImageNet's 0.6.
WRONG = 0.5
VERY_WRONG = 1.0  # where no common normalisation fits, but some other would
RIGHT = 0.1  # largest distance of a normalisation that fits
UNEQUAL = 2.0  # channels of colour images have deviations that differ less; other images would have to be bent more
BETTER = 5.0  # times nearer than the present normalisation

Values = tuple[float, ...]
Array = npt.NDArray[np.float64]
KNOWN: tuple[tuple[Values, Values], ...] = (
    ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # ImageNet
    ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),  # CIFAR-10
    ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),  # CIFAR-10 with the mean deviation within an image
    ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),  # CIFAR-100
    ((0.1307,), (0.3081,)),  # MNIST
    ((0.5,), (0.5,)),  # from -1 to 1
    ((0.0,), (1.0,)),  # from 0 to 1
    ((0.0,), (round(1 / 255, 8),)),  # from 0 to 255
)


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation per channel of images in [0, 1], with their distance to the first BatchNorm.

    Attributes
    ----------
    mean, std
        One value per channel, or one for all.
    distance
        Between the statistics under this normalisation and the running ones, nats: z^2 / 2 + (ln v)^2 / 4, the median
        over channels, with the difference z of the means in running deviations and the ratio v of the variances.
    """

    mean: Values
    std: Values
    distance: float


class FirstBatchNorm:
    """The first BatchNorm that images reach through linear layers alone, with statistics of its input.

    Parameters
    ----------
    model
        The network; a copy is measured.
    images
        (N, C, H, W), normalised by `mean` and `std`.
    mean, std
        One value per channel of the images, or one for all.

    Attributes
    ----------
    name
        The BatchNorm's name; None where there is no such layer, or its statistics are none that images give.
    """

    def __init__(self, model: nn.Module, images: Tensor, mean: Values, std: Values) -> None:
        self.name: str | None = None
        self._channels = images.shape[1]
        self._present = mean, std
        copied = copy.deepcopy(model).eval()
        with torch.no_grad():
            reached = _reached(copied, images[:1])
            if reached is None:
                return
            self.name, self._answer = reached
            norm = copied.get_submodule(self.name)
            assert isinstance(norm, BATCH_NORM)
            assert norm.running_mean is not None
            assert norm.running_var is not None
            self._mean = np.asarray(norm.running_mean.double().cpu())
            self._eps = float(norm.eps)
            self._variance = np.asarray(norm.running_var.double().cpu()) + self._eps
            if not (np.isfinite(self._mean).all() and (self._variance > 0).all()):
                self.name = None  # what a damaged file holds is told elsewhere
                return
            places = self._answer(images[:1])[0, 0].numel()
        self._images = images[: max(FEWEST_IMAGES, min(IMAGES, PLACES // places))]

    def present(self) -> float:
        """Measure the distance of the images as they are from the running statistics, see `Normalisation`."""
        with torch.no_grad():
            seen = self._answer(self._images).double().transpose(0, 1).flatten(1)
            residuals = self._residuals(np.asarray(seen.mean(1).cpu()), np.asarray(seen.var(1, unbiased=False).cpu()))
        return _distance(residuals)

    def distance(self, mean: Values, std: Values) -> float:
        """Predict the distance of the images under another normalisation."""
        return _distance(self._predicted(*_scales(mean, std, self._channels)))

    def known(self) -> list[Normalisation]:
        """List common normalisations that suit the number of channels, the nearest first."""
        candidates = [
            Normalisation(mean, std, self.distance(mean, std))
            for mean, std in KNOWN
            if len(mean) in (1, self._channels)
        ]
        return sorted(candidates, key=lambda candidate: candidate.distance)

    def fitted(self) -> Normalisation:
        """Fit the normalisation to the running statistics, by least squares from the nearest common one."""
        start, channels = self.known()[0], self._channels

        def residuals(values: Array) -> Array:
            return self._predicted(np.exp(values[:channels]), values[channels:]).ravel()

        scale, shift = _scales(start.mean, start.std, channels)
        solution = least_squares(residuals, np.concatenate([np.log(scale), shift]), loss="soft_l1", max_nfev=200).x
        std = np.exp(-solution[:channels])
        mean = tuple(round(float(value), 3) for value in -solution[channels:] * std)
        deviations = tuple(float(f"{value:.3g}") for value in std)
        return Normalisation(mean, deviations, self.distance(mean, deviations))

    @cached_property
    def _moments(self) -> tuple[Array, Array]:
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=self._images.device).view(-1, 1, 1)
            for values in self._present
        )
        with torch.no_grad():
            means, covariances = _moments(self._answer, self._images * std + mean)
        return np.asarray(means.cpu()), np.asarray(covariances.cpu())

    def _predicted(self, scale: Array, shift: Array) -> Array:
        means, covariances = self._moments
        weights = np.concatenate([scale, shift, [1.0]])
        return self._residuals(means @ weights, np.einsum("i,kij,j->k", weights, covariances, weights).clip(0))

    def _residuals(self, means: Array, variances: Array) -> Array:
        """Compute residuals (2, K); the squares of a channel's two sum to its distance."""
        away = (means - self._mean) / np.sqrt(self._variance)
        return np.stack([away / np.sqrt(2), np.log((variances + self._eps) / self._variance) / 2])


def forgotten_normalisation(
    model: nn.Module, images: Tensor, mean: Sequence[float], std: Sequence[float]
) -> list[Normalisation]:
    """Find the normalisation that a network was trained with, where the images clearly have another one.

    Returns the common ones that fit, the nearest first, or else a fitted one; none where the images fit as they are,
    where no BatchNorm is linear in the images, and where no normalisation makes them fit: images of another kind than
    in training are no mistake.

    Parameters
    ----------
    model
        A trained network; left as it is.
    images
        (N, C, H, W), normalised by `mean` and `std`, on the network's device.
    mean, std
        In units of [0, 1]: one value per channel, or one for all.
    """
    if images.dim() != 4 or len(images) < 2:
        return []
    first = FirstBatchNorm(model, images, tuple(mean), tuple(std))
    if first.name is None or not (now := first.present()) > WRONG:
        return []
    fitting = [each for each in first.known() if _explains(each, now)]
    if not fitting and now > VERY_WRONG:
        fitting = [
            each for each in [first.fitted()] if _explains(each, now) and max(each.std) <= UNEQUAL * min(each.std)
        ]
    return fitting


def _explains(normalisation: Normalisation, now: float) -> bool:
    return normalisation.distance <= RIGHT and normalisation.distance * BETTER <= now


def _distance(residuals: Array) -> float:
    return float(np.median((residuals**2).sum(0)))


def _scales(mean: Values, std: Values, channels: int) -> tuple[Array, Array]:
    scale = np.broadcast_to(1.0 / np.asarray(std, dtype=float), channels)
    return scale, np.broadcast_to(-np.asarray(mean, dtype=float), channels) * scale


class _ReachedError(Exception):
    """Stop of a forward pass that has come as far as needed."""

    def __init__(self, seen: Tensor) -> None:
        self.seen = seen


def _reached(model: nn.Module, image: Tensor) -> tuple[str, Callable[[Tensor], Tensor]] | None:
    """Find the first BatchNorm whose input is linear in the image, and the function that gives that input, or None."""
    generator = torch.Generator().manual_seed(0)
    other = torch.randn(image.shape, generator=generator, dtype=torch.float32).to(image)
    probes = torch.cat([image, other, (image + other) / 2])
    seen: dict[str, Tensor] = {}

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen.setdefault(name, inputs[0])

        return hook

    norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, BATCH_NORM) and _has_statistics(module)
    }
    with removing([module.register_forward_pre_hook(note(name)) for name, module in norms.items()]):
        model(probes)
    name = next((name for name, values in seen.items() if _is_linear(values)), None)
    if name is None:
        return None

    def stop(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        raise _ReachedError(inputs[0])

    norms[name].register_forward_pre_hook(stop)

    def answer(images: Tensor) -> Tensor:
        try:
            run_network(model, images)
        except _ReachedError as reached:
            return reached.seen
        raise AssertionError(f"{name} was not reached again")

    return name, answer


def _has_statistics(norm: nn.modules.batchnorm._BatchNorm) -> bool:
    """Tell whether a BatchNorm has seen images: as it is built, its means are 0 and its variances 1."""
    mean, variance = norm.running_mean, norm.running_var
    return mean is not None and variance is not None and bool((mean != 0).any() or (variance != 1).any())


def _is_linear(values: Tensor) -> bool:
    if len(values) != 3:
        return False
    first, second, middle = values.double()
    spread = (first - second).abs().max()
    return bool(spread > 0) and bool((middle - (first + second) / 2).abs().max() <= LINEAR * spread)


def _moments(answer: Callable[[Tensor], Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    """Compute means (K, R) and covariances (K, R, R) of responses to single channels, to ones in them, and to zeros."""
    channels = images.shape[1]

    def places_of(seen: Tensor) -> Tensor:
        return seen.reshape(*seen.shape[:2], -1)

    nothing = places_of(answer(torch.zeros_like(images[:1])))

    def alone(inputs: Tensor, channel: int) -> Tensor:
        only = torch.zeros_like(inputs)
        only[:, channel] = inputs[:, channel]
        return places_of(answer(only)) - nothing

    ones = [alone(torch.ones_like(images[:1]), channel) for channel in range(channels)]
    features, count = nothing.shape[1], 2 * channels + 1
    size = max(1, CHUNK // (count * nothing.numel()))
    total, count_of_places = torch.zeros(features, count, count, dtype=torch.float64, device=images.device), 0
    sums = torch.zeros(features, count, dtype=torch.float64, device=images.device)
    for start in range(0, len(images), size):
        part = images[start : start + size]
        seen = [alone(part, channel) for channel in range(channels)]
        seen += [fixed.expand_as(seen[0]) for fixed in (*ones, nothing)]
        answers = torch.stack(seen, 2).transpose(0, 1).double()  # (K, n, R, places)
        total += torch.einsum("knip,knjp->kij", answers, answers)
        sums += answers.sum((1, 3))
        count_of_places += answers.shape[1] * answers.shape[3]
    means = sums / count_of_places
    return means, total / count_of_places - means[:, :, None] * means[:, None, :]
