"""Moments of activations between a reference and other parents, at every tap of their channel groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from depfuse.align.statistics.sums import Moments, PairwiseSums, check_finite, collect_sums, find_origins
from depfuse.align.statistics.taps import Key, Plan, TapChoice, TapReader, plan_readings
from depfuse.data.loader import Loader
from depfuse.groups import ChannelGroups


def collect_moments(
    models: Sequence[nn.Module],
    groups: ChannelGroups | Sequence[ChannelGroups],
    loader: Loader,
    choice: TapChoice,
) -> list[dict[str, list[Moments]]]:
    """Collect moments of every orbit of free groups that has a tap, between parent 0 and each other parent.

    One forward pass of every parent over the loader, in eval mode.

    Parameters
    ----------
    groups
        Of all parents, or where their widths differ, those of each one, paired by name (`pair_groups`).
    loader
        The images; labels are not read.
    choice
        The side of the taps.

    Returns
    -------
    list of dict
        One dict (orbit name -> moments at each of its taps) per parent after the first. A group that lies in no block
        is an orbit by its own name. The moments of inner groups are those of all channels (n_groups * n_channels,) of
        their orbit among one another; those of a block group are of positions in no inner group.

    Raises
    ------
    DataError
        An activation is not finite, or the images do not fit the networks.
    """
    of_parents = [groups] * len(models) if isinstance(groups, ChannelGroups) else groups
    plans = {parent: plan_readings(parent_groups, choice) for parent, parent_groups in enumerate(of_parents)}
    reader = TapReader(dict(enumerate(models)), plans, of_parents[0].auxiliary)
    star = [(0, parent) for parent in range(1, len(models))]
    sums = collect_sums(loader, reader, find_origins(reader, loader), star)
    return [_by_orbit(plans[0], plans[parent], sums, parent) for _, parent in star]


def _by_orbit(target: Plan, source: Plan, sums: Mapping[Key, PairwiseSums], parent: int) -> dict[str, list[Moments]]:
    by_orbit: dict[str, list[Moments]] = {}
    for key, running in sums.items():
        source_channels = dict(source[key][1])
        for name, channels in target[key][1]:
            if name in source_channels:
                moments = running.moments(0, parent, channels, source_channels[name])
                check_finite(key, [moments.product])
                by_orbit.setdefault(name, []).append(moments)
    return by_orbit
