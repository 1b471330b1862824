"""Choice between several solutions of one matching problem."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch

from depfuse.align.coupling import Coupling, Couplings

MAX_ROUNDS = 5  # over all units: each judges as many children as there are other candidates


def choose(candidates: Sequence[Couplings], judge: Callable[[Couplings], float]) -> Couplings:
    """Return the candidate with the lowest loss by the judge."""
    different = _distinct(candidates)
    return different[0] if len(different) == 1 else min(different, key=judge)


def choose_by_group(
    candidates: Sequence[Couplings], units: Sequence[Collection[str]], judge: Callable[[Couplings], float]
) -> Couplings:
    """Combine candidates, group by group, to the couplings with the lowest loss by the judge.

    Starts from the best candidate; one set of groups after the other takes the candidate that lowers the loss most,
    until a round over all of them changes nothing: coordinate descent with a few choices per coordinate.

    Parameters
    ----------
    candidates
        One or more.
    units
        Sets of group names whose couplings come from one candidate: blocks with the groups inside them.
    judge
        Loss, to be minimised.
    """
    different = _distinct(candidates)
    losses = [judge(candidate) for candidate in different]
    least = min(losses)
    best = dict(different[losses.index(least)])
    for _ in range(MAX_ROUNDS):
        before = least
        for names in units:
            current = {name: best[name] for name in names}
            for other in _distinct([current, *({name: candidate[name] for name in names} for candidate in different)])[
                1:
            ]:
                loss = judge({**best, **other})
                if loss < least:
                    best, least = {**best, **other}, loss
        if least == before:
            break
    return best


def _distinct(candidates: Sequence[Couplings]) -> list[Couplings]:
    """Drop duplicate candidates and keep the order."""
    distinct: list[Couplings] = []
    for candidate in candidates:
        if not any(all(_equal(candidate[name], other[name]) for name in other) for other in distinct):
            distinct.append(candidate)
    return distinct


def _equal(first: Coupling, second: Coupling) -> bool:
    if first.permutation is not None and second.permutation is not None:
        return torch.equal(first.permutation, second.permutation)
    return first.plan is second.plan and first.maps is second.maps
