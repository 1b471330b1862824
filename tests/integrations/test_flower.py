"""A Flower server and its clients on loopback: one leaves, one sends NaN, one another architecture."""

from __future__ import annotations

import socket
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from depfuse.models import build_network
from depfuse.recipe import Recipe

flwr = pytest.importorskip("flwr", reason="Flower is not installed: pip install 'depfuse[flower]'")

IMAGES = torch.rand(96, 1, 8, 8, generator=torch.Generator().manual_seed(0))
FAST = Recipe.create({"refit": "none", "calibration.images": 96})


def arrays(width: float, seed: int = 0) -> list[np.ndarray]:
    torch.manual_seed(seed)
    return [tensor.numpy() for tensor in build_network(f"digits_resnet(width={width})").state_dict().values()]


class Client(flwr.client.NumPyClient):
    """The first two are good ones, the others are not."""

    def __init__(self, number: int) -> None:
        self.number = number

    def get_parameters(self, config: object) -> list[np.ndarray]:
        return []

    def fit(self, parameters: object, config: object) -> tuple[list[np.ndarray], int, dict[str, float]]:
        if self.number == 4:
            raise RuntimeError("it leaves in the middle of the round")
        sent = arrays(1.0 if self.number == 3 else 0.5, self.number)
        if self.number == 2:
            sent[0] = sent[0] * np.nan
        return sent, 10 * (self.number + 1), {}


def free_address() -> str:
    with socket.socket() as open_for_now:
        open_for_now.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{open_for_now.getsockname()[1]}"


def answer(name: str, sent: list[np.ndarray], count: int) -> tuple[object, object]:
    """What a client sends, as a strategy gets it."""
    parameters = flwr.common.ndarrays_to_parameters(sent)
    status = flwr.common.Status(flwr.common.Code.OK, "")
    return SimpleNamespace(cid=name), flwr.common.FitRes(status, parameters, count, {})


def run(strategy: object, clients: int) -> object:
    address = free_address()

    def join(number: int) -> None:
        client = Client(number).to_client()
        flwr.client.start_client(server_address=address, client=client, insecure=True)

    threads = [threading.Thread(target=join, args=(number,), daemon=True) for number in range(clients)]
    for thread in threads:
        thread.start()
    config = flwr.server.ServerConfig(num_rounds=1)
    return flwr.server.start_server(server_address=address, config=config, strategy=strategy)


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")
    start = flwr.common.ndarrays_to_parameters(arrays(0.5, 9))
    return {"recipe": FAST, "fraction_evaluate": 0.0, "initial_parameters": start}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_round_ends_with_the_clients_that_sent_a_network(settings: dict[str, object]) -> None:
    from depfuse.integrations.flower import FuseOnce

    network = build_network("digits_resnet(width=0.5)")
    strategy = FuseOnce(network, IMAGES, min_fit_clients=5, min_available_clients=5, **settings)
    history = run(strategy, clients=5)
    found = strategy.aggregated
    assert len(found.used) == 2
    assert sorted(found.shares) == pytest.approx([1 / 3, 2 / 3])
    assert sorted("finite" in why for why in found.left_out.values()) == [False, True]
    assert history.metrics_distributed_fit["clients"] == [(1, 2)]
    assert history.metrics_distributed_fit["left_out"] == [(1, 2)]
    assert sum(name.startswith("agreement of ") for name in history.metrics_distributed_fit) == 2


def test_later_rounds_are_averaged(settings: dict[str, object]) -> None:
    from depfuse.integrations.flower import FuseThenAverage

    strategy = FuseThenAverage(build_network("digits_resnet(width=0.5)"), IMAGES, inplace=False, **settings)
    sent = [answer(str(number), arrays(0.5, number), 10 * (number + 1)) for number in range(2)]
    assert strategy.aggregate_fit(1, [], []) == (None, {})
    fused, metrics = strategy.aggregate_fit(1, sent, [])
    assert metrics["clients"] == 2
    averaged, _ = strategy.aggregate_fit(2, sent, [])
    weights = flwr.common.parameters_to_ndarrays(averaged)[0]
    expected = (arrays(0.5, 0)[0] + 2 * arrays(0.5, 1)[0]) / 3
    assert np.allclose(weights, expected, atol=1e-6)
    assert not np.allclose(flwr.common.parameters_to_ndarrays(fused)[0], expected, atol=1e-3)


def test_whoever_answers_first_the_child_is_the_same(settings: dict[str, object]) -> None:
    from depfuse.integrations.flower import FuseOnce

    sent = [answer(name, arrays(0.5, number), 10) for number, name in enumerate("ab")]
    found = []
    for order in (sent, sent[::-1]):
        strategy = FuseOnce(build_network("digits_resnet(width=0.5)"), IMAGES, **settings)
        found.append(flwr.common.parameters_to_ndarrays(strategy.aggregate_fit(1, order, [])[0]))
    assert all(np.array_equal(one, other) for one, other in zip(*found, strict=True))
    nothing = FuseOnce(build_network("digits_resnet(width=0.5)"), IMAGES, **settings)
    assert nothing.aggregate_fit(1, [answer("a", arrays(1.0), 10)], []) == (None, {})


def test_clients_of_different_classes_get_a_child_of_all(settings: dict[str, object]) -> None:
    from depfuse.integrations.flower import FuseOnce

    def built(outputs: int) -> torch.nn.Module:
        torch.manual_seed(outputs)
        return build_network("digits_resnet(width=0.5)", classes=outputs)

    sent = []
    for name, outputs, said in (("a", 3, "0-2"), ("b", 2, "2,3")):
        proxy, result = answer(name, [tensor.numpy() for tensor in built(outputs).state_dict().values()], 10)
        result.metrics = {"labels": said}
        sent.append((proxy, result))
    strategy = FuseOnce(built, IMAGES, **settings)
    fused, metrics = strategy.aggregate_fit(1, sent, [])
    assert metrics["labels"] == "0,1,2,3"
    assert flwr.common.parameters_to_ndarrays(fused)[-1].shape == (4,)
    assert FuseOnce(built(3), IMAGES, **settings).aggregate_fit(1, sent, []) == (None, {})


def built(outputs: int) -> torch.nn.Module:
    torch.manual_seed(outputs)
    return build_network("digits_resnet(width=0.5)", classes=outputs)


class Named(torch.nn.Module):
    def __init__(self, width: int = 8, num_classes: int = 2) -> None:
        super().__init__()
        self.body, self.norm = torch.nn.Conv2d(1, width, 3), torch.nn.BatchNorm2d(width)
        self.head = torch.nn.Linear(width, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.body(images)).relu().mean((2, 3)))


def sent_by(networks: list[torch.nn.Module], said: list[str | None]) -> list[tuple[object, object]]:
    answers = [
        answer(f"of-{n}", [tensor.numpy() for tensor in own.state_dict().values()], 10)
        for n, own in enumerate(networks)
    ]
    for (_, result), labels in zip(answers, said, strict=True):
        result.metrics = {} if labels is None else {"labels": labels}
    return answers


@pytest.mark.parametrize(
    ("network", "sent"),
    [
        (lambda outputs: built(outputs), [built(4), built(4), built(3)]),
        (Named, [Named(num_classes=4), Named(num_classes=4), Named(num_classes=3)]),
        (lambda: built(4), [built(4), built(4), built(3)]),
    ],
    ids=["function", "class", "function without arguments"],
)
def test_what_builds_a_network_has_as_many_outputs_as_most_clients_sent(
    settings: dict[str, object], network: object, sent: list[torch.nn.Module]
) -> None:
    from depfuse.integrations.flower import FuseOnce

    strategy = FuseOnce(network, IMAGES, **settings)
    fused, metrics = strategy.aggregate_fit(1, sent_by(sent, [None] * 3), [])
    assert metrics["clients"] == 2
    assert "labels" not in metrics
    assert flwr.common.parameters_to_ndarrays(fused)[-1].shape == (4,)
    assert "left out: client of-2 does not fit" in str(strategy.aggregated)
    assert str(strategy.aggregated).startswith("client of-0: share 0.50")


@pytest.mark.parametrize("network", [built, built(3)], ids=["function", "network"])
def test_clients_that_all_say_the_same_labels_are_fused_as_those_that_say_none(
    settings: dict[str, object], network: object
) -> None:
    from depfuse.integrations.flower import FuseOnce

    strategy = FuseOnce(network, IMAGES, **settings)
    fused, metrics = strategy.aggregate_fit(1, sent_by([built(3), built(3)], ["5-7", "5-7"]), [])
    assert metrics["labels"] == "5,6,7"
    assert flwr.common.parameters_to_ndarrays(fused)[-1].shape == (3,)


def test_who_says_fewer_labels_than_it_has_outputs_is_left_out(
    settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    from depfuse.integrations.flower import FuseOnce

    said: list[str] = []
    monkeypatch.setattr("flwr.common.logger.log", lambda level, text, *values: said.append(text % values))
    sent = sent_by([built(3), built(2), built(10)], ["0-2", "3,4", "5-9"])
    _, metrics = FuseOnce(built, IMAGES, **settings).aggregate_fit(1, sent, [])
    assert (metrics["labels"], metrics["left_out"]) == ("0,1,2,3,4", 1)
    assert said == [
        "left out: client of-2 says 5 labels, and its network has 10 outputs: say the label of each",
    ]
    assert FuseOnce(built(2), IMAGES, **settings).aggregate_fit(1, sent_by([built(2)], ["many"]), []) == (None, {})
    assert said[-1] == "round 1 gives no network: no client is left"
    with pytest.raises(Exception, match="`network` is the class list"):
        FuseOnce(list, IMAGES, **settings)
