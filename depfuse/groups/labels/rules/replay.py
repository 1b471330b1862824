"""Replay of a trace, and the registry of rules that it applies."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from depfuse.groups.labels.labels import Factor, Labels, Ledger
from depfuse.groups.labels.rules.operations import ENTRY_BY_ENTRY, RESHAPES, SUMS, operation_name, result_shape
from depfuse.groups.reasons import CHOSEN, CONSTANT, TOUCHES_OUTPUT
from depfuse.groups.tracing.depgraph import Trace
from depfuse.groups.tracing.overwrites import Region
from depfuse.networks.computed_weights import PRUNED, computed_weights

Operands = list["Labels | None"]
Rule = Callable[["Replay", Any, Operands], "list[Labels]"]
RULES: dict[str, Rule] = {}
PATTERNS: dict[re.Pattern[str], Rule] = {}


def rule(*names: str | re.Pattern[str]) -> Callable[[Rule], Rule]:
    """Register a function as the rule of the named operations, or of those whose whole name a pattern matches."""

    def register(function: Rule) -> Rule:
        for name in names:
            if isinstance(name, str):
                RULES[name] = function
            else:
                PATTERNS[name] = function
        return function

    return register


def lookup(operation: Any) -> Rule:
    """Return the rule of an operation."""
    name = operation_name(operation)
    if name in RULES:
        return RULES[name]
    return next((function for pattern, function in PATTERNS.items() if pattern.fullmatch(name)), unknown)


class Replay:
    """Forward replay of a trace that fills a ledger."""

    def __init__(
        self,
        trace: Trace,
        regions: Mapping[Any, Region | None] | None = None,
        constants: Mapping[Any, Sequence[Tensor]] | None = None,
    ) -> None:
        self.trace = trace
        self.regions = regions or {}
        self.constants = constants or {}
        self.ledger = Ledger()
        self.values: dict[tuple[Any, int], Labels] = {}
        self.leaves: dict[int, Labels] = {}
        self._grouped = _grouped_weights(trace)
        self.tensors = {id(tensor): tensor for tensor in trace.tensors.values()}
        self._masks = {id(trace.tensors[keys[1]]) for _, keys in computed_weights(trace.modules[""], PRUNED)}

    def run(self) -> None:
        """Apply the rule of every operation, then pin the outputs, and what indices stand for."""
        for operation in self.trace.operations:
            operands = [self.operand(below, number) for below, number in operation.next_functions]
            for number, labels in enumerate(self._labels(operation, operands)):
                self.values[operation, number] = self.ledger.joined(self.ledger.single_out(labels))
        for value, axis in self.trace.ranked:
            self.pin_all(self.values.get(value), axis, CHOSEN)
        for output in self.trace.outputs:
            if output in self.values:
                for factor in self.values[output].factors:
                    self.ledger.pin(factor.labels, TOUCHES_OUTPUT)

    def _labels(self, operation: Any, operands: Operands) -> list[Labels]:
        """Apply an operation's rule; pin everything where the rule does not fit the operands."""
        shapes = [result_shape(operation, number) for number in range(len(operation._input_metadata))]
        if all(0 in shape for shape in shapes):  # the rest of a head that is rotated as a whole
            return [plain_everywhere(shape) for shape in shapes]
        try:
            return lookup(operation)(self, operation, operands)
        except (RuntimeError, IndexError):
            return unknown(self, operation, operands)

    def operand(self, below: Any, number: int) -> Labels | None:
        """Return the labels of an operand; None for a constant."""
        if below is None:
            return None
        if hasattr(below, "variable"):
            return self.leaf(below.variable)
        return self.values.get((below, number))

    def leaf(self, tensor: Tensor) -> Labels:
        """Return the labels of a parameter or buffer, made at its first use; any other leaf is an input."""
        shape = tuple(tensor.shape)
        if id(tensor) not in self.tensors:
            return plain_everywhere(shape)
        if id(tensor) not in self.leaves:
            blocks = self._grouped.get(id(tensor), 1)
            blocks = 1 if shape[:1] and shape[0] % blocks else blocks  # not the weight itself, but what it is made of
            constant = self._is_constant(tensor)
            factors = []
            for axis, size in enumerate(shape):
                alike = constant and not varies(tensor, axis)
                # One filter that the network's state has for each channel, such as a blur's, goes with its channel.
                own = (
                    alike
                    and axis == 0
                    and self._grouped.get(id(tensor)) == size
                    and bool(self.trace.leaves[id(tensor)])
                )
                if size == 1 or (alike and not own):
                    continue
                extent = [size if other == axis else 1 for other in range(len(shape))]
                if axis == 1 and blocks > 1:
                    labels = self.ledger.fresh(blocks * size).reshape(blocks, size)
                    labels = labels.repeat_interleave(shape[0] // blocks, 0)
                    extent[0] = shape[0]
                else:
                    labels = self.ledger.fresh(size)
                if constant and not own:
                    self.ledger.pin(labels, CONSTANT)
                factors.append(Factor(labels.reshape(extent), (id(tensor), axis)))
            self.leaves[id(tensor)] = Labels(shape, tuple(factors))
        return self.leaves[id(tensor)]

    def _is_constant(self, tensor: Tensor) -> bool:
        """Tell whether a tensor is no state of the network (a non-persistent buffer), or an untrained table."""
        if id(tensor) in self._masks:
            return False
        table = not isinstance(tensor, nn.Parameter) and sum(size > 1 for size in tensor.shape) > 1
        return table or not self.trace.leaves[id(tensor)]

    def role(self, labels: Labels, axis: int, role: str) -> None:
        """Record the role of the parameter's axis that gave the factors on `axis`."""
        for factor in labels.on(axis):
            if factor.source is not None:
                self.ledger.roles.setdefault(factor.source, role)

    def pin_all(self, labels: Labels | None, axis: int, reason: str) -> None:
        """Pin every factor that varies along `axis`."""
        for factor in labels.on(axis) if labels is not None else ():
            self.ledger.pin(factor.labels, reason)

    def where(self, operation: Any) -> str:
        """Write 'Name in module path', for messages."""
        module = self.trace.module_of(operation)
        return f"{operation_name(operation)} in {module or 'the network itself'}"


def _grouped_weights(trace: Trace) -> dict[int, int]:
    """Map id of each weight of a grouped convolution -> number of groups.

    Walks up from its uses, through operations that standardise or scale a weight.
    """
    divisions: dict[int, int] = {}
    for operation in trace.operations:
        if operation_name(operation) != "Convolution" or operation._saved_groups == 1:
            continue
        stack, seen = [operation.next_functions[1][0]], set()
        while stack:
            below = stack.pop()
            if below is None or below in seen:
                continue
            seen.add(below)
            if hasattr(below, "variable"):
                if below.variable.ndim > 2:
                    divisions[id(below.variable)] = operation._saved_groups
            elif operation_name(below) in (*ENTRY_BY_ENTRY, *RESHAPES, *SUMS, "NativeBatchNorm", "CudnnBatchNorm"):
                stack.extend(function for function, _ in below.next_functions)
    return divisions


def unknown(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    """Pin everything that an operation without a rule touches."""
    reason = f"the effect of {replay.where(operation)} on channels is unknown"
    for labels in operands:
        for factor in labels.factors if labels is not None else ():
            replay.ledger.pin(factor.labels, reason)
    results = range(len(operation._input_metadata))
    return [plain_everywhere(result_shape(operation, number)) for number in results]


def varies(tensor: Tensor, axis: int) -> bool:
    """Tell whether a tensor's values change along an axis."""
    if tensor.shape[axis] < 2:
        return False
    first = tensor.detach().narrow(axis, 0, 1)
    return tensor.is_meta or not torch.equal(first.expand_as(tensor), tensor.detach())


def plain_everywhere(shape: Sequence[int]) -> Labels:
    """Label a tensor none of whose entries may be permuted."""
    return Labels(tuple(shape), (), frozenset(axis for axis, size in enumerate(shape) if size > 1))
