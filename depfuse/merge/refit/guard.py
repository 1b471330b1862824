"""Steps that lead away from what is to be learned: noticed by their losses, and taken back."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

CHECKED = 8
WORSE = 1.25
WORSE_AT_FIRST = 2.0  # than one step's loss, which is of few images


class Guard:
    """Compares the losses of some steps at a time with the lowest such mean so far, and keeps the weights it came from.

    Chance alone does not raise a mean of `CHECKED` steps by as much as `WORSE`: either steps are too long, or the
    curvature of few images says too little about others. Every time that this is found, more is forgiven the next
    time, so that a mean that was low by luck does not hold up everything.
    """

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Forget all."""
        self._limit: float | None = None
        self._losses: list[Tensor] = []
        self._start: dict[str, Tensor] = {}
        self._kept: dict[str, Tensor] = {}

    def where_to_go_on(self, loss: Tensor, maps: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Weights to go back to where the steps of late have led away; None where they have not.

        Parameters
        ----------
        loss
            Per image, with the weights before this step.
        maps
            These weights; no step may change them in place.
        """
        if not self._losses:
            self._start = dict(maps)
        self._losses.append(loss.detach().double())
        if len(self._losses) < CHECKED:
            return None
        # The first number that is read from the device since the last check.
        mean, first = float(torch.stack(self._losses).mean()), float(self._losses[0])
        self._losses = []
        limit = WORSE_AT_FIRST * first if self._limit is None else self._limit
        if not (math.isfinite(mean) and mean <= limit):
            self._limit, self._kept = limit * WORSE, self._kept or self._start
            return dict(self._kept)
        if self._limit is None or mean * WORSE < self._limit:
            self._limit, self._kept = mean * WORSE, self._start
        return None

    def state_dict(self) -> dict[str, object]:
        """All that changes."""
        losses = [float(loss) for loss in self._losses]
        return {"limit": self._limit, "losses": losses, "start": self._start if losses else {}, "kept": self._kept}

    def load_state_dict(self, state: Mapping[str, object], like: Mapping[str, Tensor]) -> None:
        """Go on from what `state_dict` gave, with weights where those of `like` lie."""
        limit, losses = state["limit"], state["losses"]
        assert limit is None or isinstance(limit, float)
        assert isinstance(losses, list)
        self._limit = limit
        device = next(iter(like.values())).device
        self._losses = [torch.tensor(loss, dtype=torch.float64, device=device) for loss in losses]
        self._start, self._kept = (_moved(state[name], like) for name in ("start", "kept"))


def _moved(maps: object, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    assert isinstance(maps, dict)
    return {key: tensor.to(like[key]) for key, tensor in maps.items()}
