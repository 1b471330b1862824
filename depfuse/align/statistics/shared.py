"""Moments of the same parents that many fusions share: each is collected once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from torch import nn

from depfuse.align.statistics.moments import collect_moments
from depfuse.align.statistics.sums import Moments
from depfuse.align.statistics.taps import TapChoice
from depfuse.data.loader import Loader
from depfuse.groups import ChannelGroups
from depfuse.networks.stopwatch import Stopwatch, device_of

Found = list[dict[str, list[Moments]]]


class SharedMoments:
    """Cache of moments for `collect_moments`, which keeps those of some parents for the next fusion.

    Parameters
    ----------
    models, groups
        The parents, which must not change meanwhile, and their channel groups. Moments of other networks, such as
        folded or renewed parents, are collected anew each time.
    collect
        What collects them, as `collect_moments` does.
    """

    def __init__(
        self, models: Sequence[nn.Module], groups: ChannelGroups, collect: Callable[..., Found] = collect_moments
    ) -> None:
        self._models, self._groups, self._collect = list(models), groups, collect
        self._seconds = [0.0]
        # With each moments the images that they are of: an object's number is its own only while it lives.
        self._kept: dict[tuple[tuple[int, ...], int, TapChoice], tuple[Found, float, Loader]] = {}

    @property
    def saved(self) -> float:
        """Wall-clock seconds that collecting took of all moments that came from the cache."""
        return self._seconds[0]

    def for_copies(self, models: Sequence[nn.Module], copies: Sequence[nn.Module]) -> SharedMoments:
        """Share these moments for copies of some parents."""
        renamed = copy.copy(self)
        places = [
            next((n for n, model in enumerate(models) if model is model_kept), None) for model_kept in self._models
        ]
        renamed._models = [
            model_kept if place is None else copies[place]
            for model_kept, place in zip(self._models, places, strict=True)
        ]
        return renamed

    def collect(self, models: Sequence[nn.Module], groups: ChannelGroups, loader: Loader, choice: TapChoice) -> Found:
        """Collect moments as `collect_moments` does, or take them from the cache."""
        order = tuple(
            number for model in models for number, model_kept in enumerate(self._models) if model_kept is model
        )
        if groups is not self._groups or len(order) != len(models):
            return self._collect(models, groups, loader, choice)
        key = (order, id(loader), choice)
        if key in self._kept:
            moments, seconds, _ = self._kept[key]
            self._seconds[0] += seconds
            return moments
        watch = Stopwatch(device_of(models[0]))
        started = watch.now()
        moments = self._collect(models, groups, loader, choice)
        self._kept[key] = (moments, watch.now() - started, loader)
        return moments
