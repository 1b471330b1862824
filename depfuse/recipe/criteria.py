"""Criteria of similarity between two channels."""

from __future__ import annotations

from typing import Literal

from depfuse.recipe.fields import Between, Choice, OneOf, Registry, setting

DISTANCES_TRIED = ("cosine", "pearson", "cosine-pearson", "scaled")
Distance = Literal["best", "cosine", "pearson", "cosine-pearson", "scaled", "euclidean"]
TapPosition = Literal["after", "before", "both"]


class Criterion(Choice):
    """Criterion of similarity between two channels."""


class Activations(Criterion):
    """Activations on the calibration images."""

    name: Literal["activations"] = "activations"
    distance: Distance = setting(
        "best",
        "distance between the activations of two channels; best tries four and keeps the one whose child agrees best "
        "with the parents' ensemble on the calibration images, and is scaled where refit ridge aims at clusters",
        search=OneOf(),
    )
    taps: TapPosition = setting("after", "activations before or after the non-linearity, or both", search=OneOf())


class Weights(Criterion):
    """The weights that produce and consume the channels; no images are needed."""

    name: Literal["weights"] = "weights"


class Mixture(Activations):
    """Activations and weights together."""

    name: Literal["mixture"] = "mixture"  # type: ignore[assignment]
    share: float = setting(0.5, "share of the activation cost in the mixture", ge=0.0, le=1.0, search=Between(0.1, 0.9))


CRITERIA = Registry(Activations, Weights, Mixture)
