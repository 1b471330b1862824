"""Shares of the parents in the child: of the whole network, or part by part."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from depfuse.errors import RecipeError


@dataclass(frozen=True)
class Shares:
    """One share per parent of the network as a whole, and of its parts where these differ.

    The smallest example is a network of two stages. `Shares((0.5, 0.5), {"stage 2": (0.0, 1.0)}, {"conv2.weight":
    "stage 2"})` averages every tensor but `conv2.weight`, which is the second parent's.

    Attributes
    ----------
    network
        One share per parent, summing to one: of the parents' ensemble, and of all tensors that no part holds.
    parts
        Name of a part -> its shares.
    part_of
        State-dict key -> the part that the tensor belongs to.

    Raises
    ------
    RecipeError
        A part has another number of shares than the network, or they do not sum to one.
    """

    network: tuple[float, ...]
    parts: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    part_of: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for part, of_part in self.parts.items():
            if len(of_part) != len(self.network):
                raise RecipeError(
                    f"{part} has {len(of_part)} shares for {len(self.network)} parents: give one per parent"
                )
            if min(of_part) < 0 or abs(sum(of_part) - sum(self.network)) > 1e-6:
                raise RecipeError(f"the shares {of_part} of {part} must not be negative and must sum to 1")

    @classmethod
    def create(cls, shares: Shares | Sequence[float]) -> Shares:
        """Make shares from one number per parent, or return them as they are.

        Raises
        ------
        RecipeError
            The shares have no order, or are not a sequence.
        """
        if isinstance(shares, Shares):
            return shares
        if isinstance(shares, (str, Mapping, Set)) or not isinstance(shares, Iterable):
            raise RecipeError(f"shares {shares!r} are no sequence of numbers: give one per parent, such as (0.3, 0.7)")
        try:
            return cls(tuple(map(float, shares)))
        except (TypeError, ValueError):
            raise RecipeError(f"shares {shares!r} are no numbers: give one per parent, such as (0.3, 0.7)") from None

    @classmethod
    def of_parts(cls, network: Sequence[float], part_of: Mapping[str, str]) -> Shares:
        """Give every part the network's shares, to be changed part by part."""
        names = dict.fromkeys(part_of.values())
        return cls(tuple(network), {name: tuple(network) for name in names}, dict(part_of))

    def of(self, key: str) -> tuple[float, ...]:
        """Return the shares of the tensor with a state-dict key."""
        part = self.part_of.get(key)
        return self.network if part is None else self.parts.get(part, self.network)

    def having(self, part: str, shares: Sequence[float]) -> Shares:
        """Return these shares with other ones for one part."""
        return replace(self, parts={**self.parts, part: tuple(shares)})

    @property
    def of_one_parent(self) -> bool:
        """True if one parent has all shares, in every part."""
        parts = {tuple(of_part) for of_part in self.parts.values()} or {self.network}
        return len(parts) == 1 and max(next(iter(parts))) == 1.0

    def count(self, parent: int) -> bool:
        """Tell whether a parent has a share in any part."""
        return any(of_part[parent] != 0 for of_part in (self.network, *self.parts.values()))
