"""Flower strategies: one fusion in the place of the first average (`pip install 'depfuse[flower]'`).

The smallest example has five clients and one round::

    strategy = FuseOnce(network, images, min_fit_clients=5)
    flwr.server.start_server(config=flwr.server.ServerConfig(num_rounds=1), strategy=strategy)
    print(strategy.aggregated)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from depfuse.data.label_shares import read_classes
from depfuse.errors import DataError, DepfuseError
from depfuse.fusion.arguments import CalibrationLike, RecipeLike
from depfuse.integrations.federated import Aggregated, aggregate, check_builder
from depfuse.integrations.head_sizes import build_with, sizes_of, takes_a_size, usual_size
from depfuse.networks.forward import Example

if TYPE_CHECKING or find_spec("flwr") is not None:
    from flwr.server.strategy import FedAvg
else:

    class FedAvg:
        """Stand in for Flower's strategy, of which only a description can be read without Flower."""

        def __init__(self, **_: Any) -> None:
            raise DepfuseError("a strategy for Flower needs Flower: pip install 'depfuse[flower]'")


class FuseOnce(FedAvg):  # type: ignore[misc]
    """Fuse the clients' networks after every round, of which there is usually one.

    Clients send all tensors of their state dicts in order, BatchNorm's statistics and counters among them, as Flower's
    examples do. One that leaves, sends NaN or another architecture is left out, and the round ends with the others.

    Clients that know different classes say which in the metrics of their answer, `{"labels": "0-4"}` or `"1,3,7"`: the
    child has an output for each of all labels, ascending, and the round's metrics name them as `labels`.

    Parameters
    ----------
    network
        A network of the clients' architecture; or a class or function that builds one with so many outputs: as many as
        a client says labels, or, where none does, as most clients sent.
    batches, recipe, example
        See `depfuse.integrations.federated.aggregate`.
    **flower
        Settings of `flwr.server.strategy.FedAvg`: how many clients there are, and what they are told.

    Attributes
    ----------
    aggregated
        What became of the last round: shares, what each client was worth, and who was left out.
    """

    def __init__(
        self,
        network: nn.Module | Callable[[int], nn.Module],
        batches: CalibrationLike | None = None,
        *,
        recipe: RecipeLike | None = None,
        example: Example | None = None,
        **flower: Any,
    ) -> None:
        if not (isinstance(network, type) and issubclass(network, nn.Module)):
            check_builder("network", network)
        super().__init__(**flower)
        fixed = not isinstance(network, nn.Module) and not takes_a_size(network)
        self._network = network() if fixed else network  # type: ignore[call-arg]
        self._batches, self._recipe, self._example = batches, recipe, example
        self.aggregated: Aggregated | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(accept_failures={self.accept_failures})"

    def aggregate_fit(
        self, server_round: int, results: Sequence[Any], failures: Sequence[Any]
    ) -> tuple[Any, dict[str, Any]]:
        """Fuse what the clients sent; return the child's parameters, and what each client was worth."""
        if not results or (failures and not self.accept_failures):
            return None, {}
        from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
        from flwr.common.logger import log

        sent = sorted(results, key=lambda result: str(result[0].cid))  # the same child whoever answers first
        known, without = labels_of([answer.metrics or {} for _, answer in sent])
        arrays = [parameters_to_ndarrays(answer.parameters) for _, answer in sent]
        try:
            without |= self._of_other_sizes(known, arrays)
            for number, why in without.items():
                log(logging.WARNING, "left out: client %s %s", sent[number][0].cid, why)
            sent, arrays = ([own for n, own in enumerate(each) if n not in without] for each in (sent, arrays))
            labels = [own for number, own in known.items() if number not in without] or None
            network, template = self._networks(labels, arrays)
            found = aggregate(
                network,
                {proxy.cid: own for (proxy, _), own in zip(sent, arrays, strict=True)},
                self._batches,
                counts=[answer.num_examples for _, answer in sent],
                labels=None if template is None else labels,
                template=template,
                recipe=self._recipe,
                example=self._example,
            )
        except DepfuseError as error:
            log(logging.WARNING, "round %s gives no network: %s", server_round, error)
            return None, {}
        self.aggregated = found
        for why in found.left_out.values():
            log(logging.WARNING, "left out: %s", why)
        metrics: dict[str, Any] = {"clients": len(found.used), "left_out": len(found.left_out) + len(without)}
        if labels is not None:
            sets = None if found.result is None else found.result.parent_labels
            metrics["labels"] = ",".join(map(str, labels[found.used[0]] if sets is None else sets.joint))
        metrics |= {f"agreement of {sent[number][0].cid}": own.ensemble for number, own in found.worth.items()}
        return ndarrays_to_parameters([np.asarray(tensor.cpu()) for tensor in found.state.values()]), metrics

    def _of_other_sizes(
        self, known: Mapping[int, Sequence[int]], arrays: Sequence[Sequence[np.ndarray]]
    ) -> dict[int, str]:
        """Find the clients whose networks have another number of outputs than they say labels."""
        if isinstance(self._network, nn.Module) or not known:
            return {}
        sizes = sizes_of(self._network, arrays)
        return {
            number: f"says {len(labels)} labels, and its network has {sizes[number]} outputs: say the label of each"
            for number, labels in known.items()
            if sizes[number] not in (None, len(labels))
        }

    def _networks(
        self, labels: Sequence[Sequence[int]] | None, arrays: Sequence[Sequence[np.ndarray]]
    ) -> tuple[nn.Module | Callable[[int], nn.Module], Callable[[int], nn.Module] | None]:
        """Find what the clients' networks are, and what builds one of all labels where these differ."""
        own = self._network
        if not arrays:
            raise DataError("no client is left")
        if isinstance(own, nn.Module):
            if labels is not None and any(each != labels[0] for each in labels):
                raise DataError(
                    "clients know different classes: the strategy's network has to be what builds one with so many"
                    " outputs"
                )
            return own, None
        if labels is not None:
            return lambda number: build_with(own, len(labels[number])), lambda outputs: build_with(own, outputs)
        outputs = usual_size(sizes_of(own, arrays))
        if outputs is None:
            raise DataError(
                "no client sent a network that the strategy's function builds, with whatever number of outputs"
            )
        return build_with(own, outputs), None


def labels_of(said: Sequence[Mapping[str, Any]]) -> tuple[dict[int, list[int]], dict[int, str]]:
    """Read which classes clients know from the metrics of their answers.

    Returns
    -------
    dict, dict
        By the number of a client, its labels; and what is wrong with what another one says, where some say theirs. Both
        are empty where none does.
    """
    known: dict[int, list[int]] = {}
    wrong: dict[int, str] = {}
    if not any("labels" in metrics for metrics in said):
        return known, wrong
    for number, metrics in enumerate(said):
        try:
            known[number] = _labels(metrics)
        except DepfuseError as error:
            wrong[number] = str(error)
    return known, wrong


def _labels(metrics: Mapping[str, Any]) -> list[int]:
    if "labels" not in metrics:
        raise DataError("does not say its labels, and others do")
    text = metrics["labels"]
    try:
        labels: Sequence[int] | Sequence[str] = read_classes(text) if isinstance(text, str) else []
    except DepfuseError as error:
        raise DataError(f"says that its labels are {text!r}: {error}") from None
    if not labels or not all(isinstance(label, int) for label in labels):
        raise DataError(f"says that its labels are {text!r}: write numbers, such as 0-4 or 1,3,7")
    return [int(label) for label in labels]


class FuseThenAverage(FuseOnce):
    """Fuse after the first round, and average after all others, in which clients share a start."""

    def aggregate_fit(
        self, server_round: int, results: Sequence[Any], failures: Sequence[Any]
    ) -> tuple[Any, dict[str, Any]]:
        """Fuse in the first round that gives a network, and average in the rounds after it."""
        if self.aggregated is None:
            return super().aggregate_fit(server_round, results, failures)
        averaged: tuple[Any, dict[str, Any]] = FedAvg.aggregate_fit(self, server_round, list(results), list(failures))
        return averaged
