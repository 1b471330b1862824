"""One fusion of many clients' networks, as a federated server has them: state dicts or lists of arrays, and counts.

Averaging is wrong for networks with BatchNorm whose clients saw different data: their channels do not match and their
statistics are of other distributions. Here clients are aligned, merged by how many samples each had, refitted and
renormalised by unlabelled samples of the server. A client that sent something else is left out, and said why.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from depfuse.data.loader import Loader
from depfuse.errors import DataError, DepfuseError, RecipeError
from depfuse.evaluate.agreement import evaluate_agreement
from depfuse.evaluate.scores import Agreement
from depfuse.fusion.arguments import CalibrationLike, RecipeLike, read_calibration
from depfuse.fusion.parents import Parents
from depfuse.fusion.pipeline import fuse
from depfuse.fusion.result import FusionResult
from depfuse.fusion.soundness import gives_finite_outputs, negative_variances
from depfuse.integrations.head_sizes import names_of
from depfuse.io.checkpoint import Checkpoint, state_digest
from depfuse.io.fitting import COUNTER
from depfuse.io.into_network import load_into
from depfuse.io.weights import find_weights
from depfuse.networks.forward import Example
from depfuse.networks.precision import in_full_precision
from depfuse.recipe.presets import as_recipe
from depfuse.tasks.selection import selected

State: TypeAlias = Mapping[str, Any] | Sequence[Any]

SAID = 5  # clients of which a sentence says why they were left out
WITHOUT_DATA = {"align.criterion": "weights", "refit": "none", "renorm": "data-free"}


@dataclass(frozen=True, eq=False)
class Aggregated:
    """One network of many clients.

    Attributes
    ----------
    model
        The child; where only one client sent a network, that one.
    used
        Numbers of the clients that it was made of, from 0.
    left_out
        Number of a client -> a sentence that names it and why its network was not used.
    shares
        The share of each client that was used.
    worth
        Number of a client -> how its network agrees with the ensemble of all that were used, on the server's samples;
        empty without these.
    result
        The fusion; None where only one client was left.
    names
        What all clients are called.
    """

    model: nn.Module
    used: tuple[int, ...]
    left_out: Mapping[int, str]
    shares: tuple[float, ...]
    worth: Mapping[int, Agreement]
    result: FusionResult | None
    names: Sequence[str]

    @property
    def state(self) -> dict[str, Tensor]:
        """The tensors that go back to the clients."""
        return {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

    def __str__(self) -> str:
        lines = [
            f"client {self.names[number]}: share {share:.2f}{self._worth_of(number)}"
            for number, share in zip(self.used, self.shares, strict=True)
        ]
        return "\n".join([*lines, *(f"left out: {why}" for why in self.left_out.values())])

    def _worth_of(self, number: int) -> str:
        if number not in self.worth:
            return ""
        found = self.worth[number]
        return f", {found.measure.text(found.ensemble)} of {found.measure.name} with the ensemble"


def aggregate(
    network: nn.Module | Callable[[int], nn.Module],
    states: Sequence[State] | Mapping[str, State],
    batches: CalibrationLike | None = None,
    *,
    counts: Sequence[float] | None = None,
    labels: Sequence[Sequence[int]] | None = None,
    template: nn.Module | Callable[[int], nn.Module] | None = None,
    recipe: RecipeLike | None = None,
    example: Example | None = None,
) -> Aggregated:
    """Fuse the networks that clients sent into one.

    Parameters
    ----------
    network
        A network of the clients' architecture, which is left as it is; or what builds that of a client by its number,
        from 0, where their outputs differ.
    states
        What each client sent: a state dict, or its arrays in that order, with or without BatchNorm's counters; or that
        by the name of the client, by which it is called then, and not by its number.
    batches
        Unlabelled samples of the server, anything that `fuse` takes for calibration. Where None, clients are matched by
        weights and statistics are rescaled without data, which loses much.
    counts
        How many samples each client trained on; equal ones where None.
    labels
        The labels of each client's outputs, where these differ. The child has an output for each of all, ascending.
    template
        Where labels differ, a network with so many outputs, which is left as it is, or what builds one.
    recipe
        Settings of the fusion; the defaults, or those without data, where None.
    example
        An input (1, ...) of the networks, where there are no batches.

    Raises
    ------
    DataError
        No client sent a network that can be used.
    RecipeError, GroupError
        See `fuse`; or the recipe sets shares, which follow from `counts`.
    """
    check_builder("network", network)
    if template is not None:
        check_builder("template", template)
    called, sent = _check_sent(states)
    _check_numbers(sent, counts=counts, labels=labels)
    settings = as_recipe(recipe if recipe is not None or batches is not None else WITHOUT_DATA)
    if settings.merge.weights is not None:
        raise RecipeError("`merge.weights` is set: shares follow from the clients' counts, leave one of them out")
    samples: Loader | None = None
    models: dict[int, nn.Module] = {}
    left_out: dict[int, str] = {}
    for number, state in enumerate(sent):
        model = copy.deepcopy(network) if isinstance(network, nn.Module) else _built("network", network, number)
        sender = f"client {called[number]}"
        try:
            if counts is not None:
                _check_count(counts[number], sender)
            _load(model, state, sender)
        except DepfuseError as error:
            left_out[number] = str(error)
            continue
        models[number] = model.eval()
    if batches is not None and models:
        first = in_full_precision([next(iter(models.values()))])[0]
        samples = read_calibration(first, settings, batches)
    for number in list(models):
        if not gives_finite_outputs(models[number], samples, example):
            left_out[number] = f"client {called[number]} gives NaN or infinite outputs"
            del models[number]
    if not models:
        why = [text for _, text in sorted(left_out.items())]
        more = f"; and so on for {len(why) - SAID:,} more" if len(why) > SAID else ""
        raise DataError(f"no client sent a usable network: {'; '.join(why[:SAID]) or 'there is none'}{more}")
    used = tuple(models)
    weights = [1.0 if counts is None else float(counts[number]) for number in used]
    shares = tuple(weight / sum(weights) for weight in weights)
    if len(models) == 1:
        return Aggregated(models[used[0]], used, left_out, shares, {}, None, called)
    sets = None if labels is None else [labels[number] for number in used]
    whole = None
    if sets is not None and template is not None:
        joint = {label for own in sets for label in own}
        whole = template if isinstance(template, nn.Module) else _built("template", template, len(joint))
    result = fuse(
        Parents(list(models.values()), sets, whole, example=example),
        settings.changed({"merge.weights": list(shares)}),
        samples,
    )
    return Aggregated(result.child, used, left_out, shares, _worth(result, used), result, called)


def check_builder(name: str, given: object) -> None:
    """Raise `RecipeError` where an argument is neither a network nor a function that builds one."""
    if not callable(given) or isinstance(given, type):
        what = f"the class {given.__name__}" if isinstance(given, type) else f"a {type(given).__name__}"
        raise RecipeError(
            f"`{name}` is {what}: give a network, or a function of a number that builds one; arguments are in the order"
            " network, states, batches"
        )


def _built(name: str, builder: Callable[[int], nn.Module], number: int) -> nn.Module:
    """Build a network by a function of the user's."""
    found = builder(number)
    if not isinstance(found, nn.Module):
        raise RecipeError(f"`{name}` gives a {type(found).__name__} for {number}: it must build a network")
    return found


def _check_sent(states: object) -> tuple[list[str], list[State]]:
    """List clients and what they sent; raise `DataError` where it is no list of that."""
    if (
        isinstance(states, Mapping)
        and states
        and all(isinstance(own, (Mapping, list, tuple)) for own in states.values())
    ):
        return list(map(str, states)), list(states.values())
    if isinstance(states, (Tensor, np.ndarray, nn.Module, Mapping, str, bytes)) or not isinstance(states, Iterable):
        raise DataError(
            f"the states are a {type(states).__name__}: give a list of what each client sent, state dicts or lists of"
            " arrays; arguments are in the order network, states, batches"
        )
    sent = list(states)
    return [str(number) for number in range(len(sent))], sent


def _check_count(count: object, sender: str) -> None:
    """Raise `DataError` unless a client's number of samples is one."""
    number = isinstance(count, (int, float, np.number)) or (isinstance(count, Tensor) and count.numel() == 1)
    if not number or not (math.isfinite(float(count)) and float(count) > 0):  # type: ignore[arg-type]
        raise DataError(f"{sender} trained on {count} samples")


def _check_numbers(states: Sequence[State], **of_each: Sequence[Any] | None) -> None:
    for name, given in of_each.items():
        if given is not None and (isinstance(given, (Mapping, str)) or not hasattr(given, "__len__")):
            raise DataError(f"`{name}` is of type {type(given).__name__}: give a list with an entry for each client")
        if given is not None and len(given) != len(states):
            raise DataError(f"`{name}` has {len(given)} entries for {len(states)} clients: give one for each")


def _load(model: nn.Module, state: State, sender: str) -> None:
    """Put what a client sent into a network; all of it must fit."""
    if not isinstance(state, (Mapping, Sequence)) or isinstance(state, (str, bytes)):
        raise DataError(f"{sender} sent a {type(state).__name__}: a state dict or a list of arrays is wanted")
    named = state if isinstance(state, Mapping) else _in_order(state, list(model.state_dict()), sender)
    loaded = {str(name): _tensor(value, sender) for name, value in named.items()}
    weights = find_weights(Path(sender), loaded)
    tensors = weights.tensors()
    if (found := negative_variances(tensors)) is not None:
        raise DataError(f"{sender} has {found}")
    load_into(model, Checkpoint(Path(sender), tensors, None, state_digest(tensors), weights=weights))


def _in_order(arrays: Sequence[Any], names: Sequence[str], sender: str) -> dict[str, Any]:
    """Name arrays in the order of a state dict, with or without the counters of BatchNorm."""
    known = names_of(arrays, names)
    if known is None:
        counters = sum(name.endswith(COUNTER) for name in names)
        raise DataError(
            f"{sender} sent {len(arrays)} arrays: the network has {len(names)}, {len(names) - counters} of them no"
            " counters"
        )
    return dict(zip(known, arrays, strict=True))


def _tensor(value: Any, sender: str) -> Tensor:
    try:
        return value.detach() if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
    except (TypeError, ValueError) as error:
        raise DataError(f"{sender} sent a {type(value).__name__} that is no array: {error}") from None


def _worth(result: FusionResult, used: Sequence[int]) -> dict[int, Agreement]:
    """Measure how each client agrees with all of them together, on the calibration samples."""
    if result.calibration is None:
        return {}
    parents = selected(result.scored_parents, result.meaning.scores)
    each, _, _ = evaluate_agreement(
        parents, [], result.calibration, result.recipe.merge.weights, result.parent_labels, result.meaning.scored
    )
    return dict(zip(used, each, strict=True))
