"""Coordinate descent over groups, with costs that are updated instead of recomputed.

With all other couplings fixed, the cost of a group is linear in its own: through edges A of the target and B of the
source to a group with permutation pi it is, up to constants, minus the product of A and B[:, pi]. When pi changes for
some channels only, the product changes by those columns. A group's own changes need no update, because its costs are
kept in the order of the source.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from depfuse.align.costs import weight_cost
from depfuse.align.coupling import Couplings
from depfuse.align.edges import Edges
from depfuse.align.problem import MatchingProblem, is_better
from depfuse.align.transport import assigned, reassigned
from depfuse.align.trees import Placement, compose_placements, unmoved_placement

MAX_SWEEPS = 100  # over all groups; a warning is given where the last one still improves
ROUNDING = 1e-7  # relative, of float32 products: a smaller gain is none


@dataclass(frozen=True, eq=False)
class _Side:
    """Edges of one of their two groups: (m, d, n), the group's channels last.

    The columns moved by another group's change are contiguous, so products read them without a copy.
    """

    edges: Edges
    end: int
    target: Tensor
    source: Tensor

    @property
    def other(self) -> str | None:
        return self.edges.ends[1 - self.end]

    def product(self, permutation: Tensor | None, changed: Tensor | None = None, old: Tensor | None = None) -> Tensor:
        """Compute the product (n, n) of target and source channels with the other group's channels in place.

        With `changed` and `old`, return the difference to the product with the old permutation.
        """
        target, source = self.target, self.source
        if permutation is not None:
            permutation = permutation.to(source.device)
            if changed is None or old is None:
                source = source[permutation]
            else:
                changed = changed.to(source.device)
                target = target[changed]
                source = source[permutation[changed]] - source[old.to(source.device)[changed]]
        return target.flatten(0, 1).T @ source.flatten(0, 1)


class SharedCosts:
    """Costs that all descents of one problem share.

    Attributes
    ----------
    work
        Multiply-adds spent on products so far.
    """

    def __init__(self, problem: MatchingProblem) -> None:
        self.problem = problem
        self.roots = problem.roots
        self.numbers = {root.name: number for number, root in enumerate(self.roots)}
        self.sides: list[list[_Side]] = [[] for _ in self.roots]
        self.loops: list[list[Edges]] = [[] for _ in self.roots]
        self.neighbours: list[set[int]] = [set() for _ in self.roots]
        for edges in problem.edges:
            first = self.numbers[edges.ends[0]]
            pair = edges.target, edges.source
            self.sides[first].append(_Side(edges, 0, *(t.permute(1, 2, 0).contiguous() for t in pair)))
            if edges.ends[1] is None:
                continue
            second = self.numbers[edges.ends[1]]
            self.sides[second].append(_Side(edges, 1, *(t.transpose(1, 2).contiguous() for t in pair)))
            self.neighbours[first].add(second)
            self.neighbours[second].add(first)
            if first == second:
                self.loops[first].append(edges)
        self._norms: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._through_others()
        self.starting: dict[int, Tensor] = {}
        self.work = 0

    def _through_others(self) -> None:
        """List neighbours by tensors that are not edges."""
        touched: list[set[str]] = []
        for root in self.roots:
            parts = self.problem.beside_edges.get(root.name, [])
            if root.children:
                parts = [part for orbit in root.walk() for part in orbit.parts]
            touched.append({part.key for part in parts})
        self.held = set().union(*touched) if touched else set()
        for number, entries in enumerate(touched):
            self.neighbours[number] |= {other for other, other_entries in enumerate(touched) if entries & other_entries}

    def norms(self, number: int, side: int) -> tuple[Tensor, Tensor]:
        """Compute squared norms (n,) of a root's target and source channels on one side."""
        if (number, side) not in self._norms:
            seen = self.sides[number][side]
            self._norms[number, side] = _squares(seen.target), _squares(seen.source)
        return self._norms[number, side]

    def start(self, number: int) -> Tensor:
        """Compute the product of a root with all others unmoved, once for all descents."""
        if number not in self.starting:
            size = self.roots[number].size
            total = torch.zeros(size, size, dtype=torch.float32, device=self.sides[number][0].target.device)
            for side in self.sides[number]:
                total += self.multiply(side, None)
            self.starting[number] = total
        return self.starting[number].clone()

    def multiply(
        self, side: _Side, permutation: Tensor | None, changed: Tensor | None = None, old: Tensor | None = None
    ) -> Tensor:
        """Compute `_Side.product` and count its work."""
        share = 1.0 if changed is None else len(changed) / max(len(side.target), 1)
        self.work += int(share * side.target.numel()) * side.target.shape[2]
        return side.product(permutation, changed, old)


def _squares(tensor: Tensor) -> Tensor:
    return tensor.flatten(0, 1).square().sum(0).double().cpu()


class Descent:
    """A descent: the placement of every root, with costs that follow it.

    Attributes
    ----------
    placed
        Root name -> placement.
    converged
        True if the last run ended because no root improved.
    """

    def __init__(self, shared: SharedCosts, start: Mapping[str, Placement] | None = None) -> None:
        self.shared, self.problem = shared, shared.problem
        self.placed: dict[str, Placement] = {root.name: unmoved_placement(root) for root in shared.roots}
        self.state = {key: self.problem.source[key] for key in shared.held}
        self.converged = False
        self._products: dict[int, Tensor] = {}
        self._at: dict[tuple[int, int], Tensor | None] = {}
        for number, root in enumerate(shared.roots):
            if start is not None and root.name in start:
                self._move(number, start[root.name])

    @property
    def couplings(self) -> Couplings:
        """Couplings of all groups."""
        return self.problem.couplings(self.placed)

    def run(self, orders: Iterable[Sequence[int]], sweeps: int = MAX_SWEEPS) -> None:
        """Match root after root with all others fixed, until none improves (Ainsworth et al. 2023, algorithm 1).

        A root is matched again only where others that it shares entries with have moved since.

        Parameters
        ----------
        orders
            One order of the roots per sweep; the last one is repeated until the end.
        sweeps
            Largest number of sweeps.
        """
        open_ = set(range(len(self.shared.roots)))
        for sweep, order in enumerate(_repeated(orders)):
            if sweep >= sweeps or not open_:
                break
            for number in order:
                if number in open_:
                    open_.discard(number)
                    if self.improve(number):
                        open_ |= self.shared.neighbours[number]
        self.converged = not open_

    def in_order(self) -> None:
        """Match layer by layer in network order, by what precedes each group (Singh & Jaggi 2020, section 4.1)."""
        for number, root in enumerate(self.shared.roots):
            if root.children:
                step, _, _ = self.problem.match_tree(root, self.state, self.placed[root.name], consumed=False)
                self._move(number, step)
            else:
                order = assigned(self.cost(number, preceding=True, norms=bool(self.problem.watched)))
                self._place(number, order)

    def improve(self, number: int) -> bool:
        """Match one root with all others fixed; tell whether that moved it."""
        root = self.shared.roots[number]
        if root.children:
            step = self.problem.improve_tree(root, self.state, self.placed[root.name])
            if step is not None:
                self._move(number, step)
            return step is not None
        cost, old = self.cost(number, norms=bool(self.problem.watched)), self.placed[root.name][root.name]
        order, rows = reassigned(cost, old), torch.arange(root.size)
        before, after = float(cost[rows, old].sum()), float(cost[rows, order].sum())
        if self.shared.loops[number] and not self.problem.watched:
            # Edges within the group depend on its coupling at both ends: what the cost says of them is a first guess.
            after -= 2.0 * sum(_loop(e, order) - _bent(e, old, order) for e in self.shared.loops[number])
        better = is_better(after, before) and before - after > ROUNDING * float(cost[rows, old].abs().sum())
        if better:
            self._place(number, order)
        return better

    def cost(self, number: int, preceding: bool = False, norms: bool = True) -> Tensor:
        """Compute the cost (n, n) of a plain root, columns in the order of the source, in float64 on the CPU.

        With `preceding`, only by tensors that do not consume the channels, if there are any. Without `norms`, up to
        terms that are constant along rows or columns and change no assignment.
        """
        root, sides = self.shared.roots[number], self.shared.sides[number]
        others = self.problem.beside_edges.get(root.name, [])
        chosen = [k for k, side in enumerate(sides) if side.edges.roles[side.end] != "consumes"]
        before = [part for part in others if part.role != "consumes"]
        if not preceding or not (chosen or before):
            chosen, before = list(range(len(sides))), others
        if not chosen and not before:
            return torch.zeros(root.size, root.size, dtype=torch.float64)
        cost = None
        if chosen:
            cost = self._product(number, chosen).cpu().double().mul_(-2.0)
            if norms:
                sizes = [self.shared.norms(number, k) for k in chosen]
                cost += torch.stack([rows for rows, _ in sizes]).sum(0)[:, None]
                cost += torch.stack([columns for _, columns in sizes]).sum(0)
        if before:
            current = weight_cost(before, self.problem.target, self.state)[0]
            current = current[:, torch.argsort(self.placed[root.name][root.name])]
            cost = current if cost is None else cost + current
        assert cost is not None
        return self.problem.mixed(root.name, cost)

    def _product(self, number: int, chosen: Sequence[int]) -> Tensor:
        """Sum the products through the chosen sides, up to date."""
        sides = self.shared.sides[number]
        whole = len(chosen) == len(sides)
        if whole and number not in self._products and self._starts_well(number):
            self._products[number] = self.shared.start(number)
            for k in chosen:
                self._at[number, k] = None
        current = [k for k in chosen if (number, k) in self._at]
        missing = [k for k in chosen if (number, k) not in self._at]
        total = self._products.get(number)
        for k in current:
            side = sides[k]
            if side.other is None:
                continue
            new, known_at = self.placed[side.other][side.other], self._at[number, k]
            old = torch.arange(len(new)) if known_at is None else known_at
            changed = torch.nonzero(new != old)[:, 0]
            if len(changed):
                assert total is not None
                total += self.shared.multiply(side, new, changed, old)
                self._at[number, k] = new
        for k in missing:
            side = sides[k]
            now = None if side.other is None else self.placed[side.other][side.other]
            product = self.shared.multiply(side, now)
            total = product if total is None else total.add_(product)
            self._at[number, k] = now
        assert total is not None
        self._products[number] = total
        return total

    def _starts_well(self, number: int) -> bool:
        """Tell whether the product with all others unmoved is known, or near the one sought."""
        if number in self.shared.starting:
            return True
        entries = moved = 0
        for side in self.shared.sides[number]:
            entries += side.target.numel()
            if side.other is not None:
                order = self.placed[side.other][side.other]
                moved += side.target.numel() * (not torch.equal(order, torch.arange(len(order))))
        return 2 * moved < entries

    def _place(self, number: int, order: Tensor) -> None:
        """Place a plain root's channels by `order`."""
        root = self.shared.roots[number]
        step = torch.argsort(self.placed[root.name][root.name])[order]
        self._move(number, {root.name: step})

    def _move(self, number: int, step: Placement) -> None:
        root = self.shared.roots[number]
        self.placed[root.name] = compose_placements(self.placed[root.name], step)
        if self.state:
            keys = {part.key for orbit in root.walk() for part in orbit.parts}
            if held := keys & set(self.state):
                moved = root.permute({key: self.state.get(key, self.problem.source[key]) for key in keys}, step)
                self.state.update({key: moved[key] for key in held})


def _loop(edges: Edges, order: Tensor) -> float:
    """Multiply target and source edges within a group under its permutation."""
    order = order.to(edges.source.device)
    return float((edges.target * edges.source[order][:, order]).double().sum())


def _bent(edges: Edges, old: Tensor, new: Tensor) -> float:
    """Compute the linear cost's approximation of `_loop`: one end moved at a time."""
    old, new = old.to(edges.source.device), new.to(edges.source.device)
    first = float((edges.target * edges.source[new][:, old]).double().sum())
    second = float((edges.target * edges.source[old][:, new]).double().sum())
    return first + second - _loop(edges, old)


def _repeated(orders: Iterable[Sequence[int]]) -> Iterator[Sequence[int]]:
    last: Sequence[int] = ()
    for last in orders:
        yield last
    while True:
        yield last
