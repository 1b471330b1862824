"""A federated server's aggregation: clients with BatchNorm, some of which send what cannot be used."""

from __future__ import annotations

import copy
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor, nn

from depfuse.errors import DataError, DepfuseError, DepfuseWarning, RecipeError
from depfuse.groups import find_groups, random_permutations
from depfuse.integrations.federated import aggregate
from depfuse.integrations.flower import FuseOnce, labels_of
from depfuse.models import build_network
from depfuse.recipe import Recipe

IMAGES = torch.rand(96, 1, 8, 8, generator=torch.Generator().manual_seed(0))
FAST = Recipe.create({"refit": "none", "calibration.images": 96})


def client(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    network = build_network("digits_resnet(width=0.5)")
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.rand(64, 1, 8, 8))
    return network.eval()


def permuted(network: nn.Module) -> dict[str, Tensor]:
    state = dict(network.state_dict())
    groups = find_groups(network, IMAGES[:1])
    for name, order in random_permutations(groups, 1).items():
        state = dict(groups[name].permute(state, order))
    return state


def arrays(state: dict[str, Tensor]) -> list[object]:
    return [tensor.numpy() for tensor in state.values()]


def test_clients_that_are_one_network_in_other_orders_give_it_back() -> None:
    network = client(0)
    found = aggregate(client(5), [network.state_dict(), permuted(network)], IMAGES, counts=[30, 10], recipe=FAST)
    assert found.used == (0, 1)
    assert found.shares == (0.75, 0.25)
    assert not found.left_out
    with torch.no_grad():
        # Equal weights; statistics are those of the server's images instead of the client's.
        assert torch.equal(found.model(IMAGES).argmax(1), found.result.child(IMAGES).argmax(1))
    for name, tensor in network.named_parameters():
        assert torch.allclose(found.model.get_parameter(name), tensor, atol=1e-5), name
    assert [own.ensemble for own in found.worth.values()] == [1.0, 1.0]
    assert "client 0: share 0.75, 100.00 %" in str(found)


def test_lists_of_arrays_are_state_dicts_in_their_order() -> None:
    states = [client(seed).state_dict() for seed in (0, 1)]
    of_dicts = aggregate(client(5), states, IMAGES, recipe=FAST)
    of_arrays = aggregate(client(5), [arrays(state) for state in states], IMAGES, recipe=FAST)
    counted = [[a for a, name in zip(arrays(s), s, strict=True) if "num_batches" not in name] for s in states]
    without = aggregate(client(5), counted, IMAGES, recipe=FAST)
    for name, tensor in of_dicts.state.items():
        assert "num_batches" in name or torch.equal(without.state[name], tensor), name
        assert torch.equal(of_arrays.state[name], tensor), name


def test_clients_in_parallel_wrappers_send_their_names_with_a_prefix() -> None:
    states = [client(seed).state_dict() for seed in (0, 1)]
    wrapped = [states[0], {f"module.{name}": tensor for name, tensor in states[1].items()}]
    found, plain = (aggregate(client(5), own, IMAGES, recipe=FAST) for own in (wrapped, states))
    assert found.used == (0, 1)
    for name, tensor in plain.state.items():
        assert torch.equal(found.state[name], tensor), name


def test_who_sends_something_else_is_left_out() -> None:
    good = [client(seed).state_dict() for seed in (0, 1)]
    broken = copy.deepcopy(good[0])
    next(iter(broken.values())).view(-1)[0] = float("nan")
    other = build_network("digits_resnet(width=1)").state_dict()
    states = [good[0], broken, other, arrays(other)[:-2], "weights", good[1], good[0]]
    counts = [10, 10, 10, 10, 10, 30, float("nan")]
    found = aggregate(client(5), states, IMAGES, counts=counts, recipe=FAST)
    assert found.used == (0, 5)
    assert found.shares == (0.25, 0.75)
    assert sorted(found.left_out) == [1, 2, 3, 4, 6]
    assert "not finite (NaN or infinity)" in found.left_out[1]
    assert "client 2 does not fit" in found.left_out[2]
    assert "there and (8, 1, 3, 3) in the network" in found.left_out[2]
    assert not any("file" in why for why in found.left_out.values())
    assert found.left_out[3] == "client 3 sent 36 arrays: the network has 38, 32 of them no counters"
    assert found.left_out[4] == "client 4 sent a str: a state dict or a list of arrays is wanted"
    assert found.left_out[6] == "client 6 trained on nan samples"
    assert "left out: client 4 sent a str" in str(found)


def test_a_client_that_sends_two_sets_is_told_no_key_to_choose_by() -> None:
    state = client(0).state_dict()
    two = {f"{where}.{key}": value for where in ("model", "model_ema") for key, value in state.items()}
    sent = [two, client(1).state_dict()]
    with pytest.warns(DepfuseWarning, match=r"client 0: took model_ema .*, not model, which fit too;"):
        aggregate(client(5), sent, IMAGES, recipe=FAST)


def test_clients_with_names_are_called_by_them() -> None:
    good = [client(seed).state_dict() for seed in (0, 1)]
    found = aggregate(client(5), {"north": good[0], "south": arrays(good[1]), "west": []}, IMAGES, recipe=FAST)
    assert str(found).startswith("client north: share 0.50, ")
    assert "left out: client west sent 0 arrays" in str(found)


def test_one_client_alone_is_kept_as_it_is() -> None:
    state = client(0).state_dict()
    found = aggregate(client(5), [state, "nothing"], IMAGES)
    assert found.result is None
    assert all(torch.equal(found.state[name], tensor) for name, tensor in state.items())
    with pytest.raises(DataError, match="no client sent a usable network: client 0 sent a str"):
        aggregate(client(5), ["nothing"], IMAGES)
    with pytest.raises(DataError, match="`counts` has 2 entries for 1 clients"):
        aggregate(client(5), [state], IMAGES, counts=[1, 2])


def test_without_data_clients_are_matched_by_weights() -> None:
    network = client(0)
    template = client(5)
    before = copy.deepcopy(template.state_dict())
    found = aggregate(template, [network.state_dict(), permuted(network)], example=IMAGES[:1])
    with torch.no_grad():
        assert torch.allclose(found.model(IMAGES), network(IMAGES), atol=1e-4)
    assert found.worth == {}
    assert all(torch.equal(template.state_dict()[name], tensor) for name, tensor in before.items())


@pytest.mark.skipif(find_spec("flwr") is not None, reason="Flower is installed")
def test_without_flower_its_strategies_say_what_is_missing() -> None:
    with pytest.raises(DepfuseError, match=r"needs Flower: pip install 'depfuse\[flower\]'"):
        FuseOnce(client(0), IMAGES)


def test_clients_that_know_different_classes_say_which() -> None:
    assert labels_of([{}, {"loss": 1.0}]) == ({}, {})
    assert labels_of([{"labels": "0-2"}, {"labels": "1,3"}]) == ({0: [0, 1, 2], 1: [1, 3]}, {})


def test_clients_whose_labels_cannot_be_read_are_left_out() -> None:
    known, wrong = labels_of([{"labels": "0-2"}, {}, *({"labels": text} for text in (3, "cat,dog", "", "0-"))])
    assert known == {0: [0, 1, 2]}
    assert wrong.pop(1) == "does not say its labels, and others do"
    assert sorted(wrong) == [2, 3, 4, 5]
    assert all(why.startswith("says that its labels are ") for why in wrong.values())


@pytest.mark.filterwarnings("ignore::depfuse.errors.DepfuseWarning")
def test_a_child_of_clients_that_know_different_classes_knows_all() -> None:
    labels = [[0, 1, 2], [2, 3], [3, 7]]

    def built(number: int) -> nn.Module:
        torch.manual_seed(number)
        return build_network("digits_resnet(width=0.5)", classes=len(labels[number]))

    states: list[object] = [*(built(number).state_dict() for number in range(2)), "it leaves"]
    found = aggregate(
        built,
        states,
        IMAGES,
        labels=labels,
        template=lambda outputs: build_network("digits_resnet(width=0.5)", classes=outputs),
        recipe=FAST,
    )
    assert found.result is not None
    assert found.result.parent_labels is not None
    assert found.result.parent_labels.joint == (0, 1, 2, 3)
    assert found.model(IMAGES).shape == (96, 4)
    assert found.used == (0, 1)
    assert set(found.worth) == {0, 1}


@pytest.mark.parametrize("images", [IMAGES, None], ids=["with-images", "without"])
def test_a_client_whose_network_cannot_be_run_is_left_out(images: Tensor | None) -> None:
    good = [client(seed).state_dict() for seed in (0, 1)]
    negative = {name: -tensor if "running_var" in name else tensor for name, tensor in good[0].items()}
    overflowing = {name: tensor * 1e30 if tensor.is_floating_point() else tensor for name, tensor in good[0].items()}
    recipe = None if images is None else FAST
    states = [good[0], negative, overflowing, good[1]]
    found = aggregate(client(5), states, images, recipe=recipe, example=IMAGES[:1])
    assert found.used == (0, 3)
    assert "negative variances" in found.left_out[1]
    assert "client 2 gives NaN or infinite outputs" in str(found)


def test_shares_come_from_counts_and_are_not_overridden_in_silence() -> None:
    states = [client(seed).state_dict() for seed in (0, 1)]
    with pytest.raises(DepfuseError, match="shares follow from the clients' counts"):
        aggregate(client(5), states, IMAGES, recipe={"merge.weights": [0.9, 0.1]})


def test_the_sentence_of_a_round_without_a_network_names_each_client_once() -> None:
    with pytest.raises(DataError, match="client 0 trained on 0 samples; client 1 sent a str"):
        aggregate(client(5), [client(0).state_dict(), "weights"], IMAGES, counts=[0, 1])


def test_labels_that_are_too_many_are_named() -> None:
    def network(number: int) -> nn.Module:
        return build_network("digits_resnet(width=0.5)", classes=(3, 2)[number])

    states = [network(number).state_dict() for number in (0, 1)]
    for labels in ([[0, 1, 2, 3], [3, 4]], [[0, 1, 2, 3, 4, 5], [3, 4, 6, 7]]):
        with pytest.raises(RecipeError, match=r"labels.*`labels` names each"):
            aggregate(
                network, states, IMAGES, labels=labels, recipe=FAST,
                template=lambda count: build_network("digits_resnet(width=0.5)", classes=count),
            )  # fmt: skip


def test_the_name_stands_in_the_package() -> None:
    code = "import sys\nimport depfuse.integrations\nassert 'torch' not in sys.modules\n"
    code += "from depfuse.integrations import aggregate\nassert aggregate.__module__.endswith('federated')"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": [], "states": nn.Identity()}, "`network` is a list: give a network, or a function"),
        ({"network": nn.Linear}, "`network` is the class Linear: give a network"),
        ({"network": lambda _: "a"}, "`network` gives a str for 0: it must build a network"),
        ({"states": IMAGES}, "the states are a Tensor: give a list of what each client sent"),
        ({"states": {}}, "the states are a dict: give a list"),
        ({"states": list(IMAGES)}, "client 4 sent a Tensor: .*; and so on for 91 more$"),
        ({"counts": 5}, "`counts` is of type int: give a list"),
        ({"counts": ["a", None]}, "client 0 trained on a samples; client 1 trained on None samples"),
        ({"template": "x"}, "`template` is a str: give a network"),
    ],
)
def test_arguments_in_another_order_or_of_another_kind_are_one_sentence(change: dict, message: str) -> None:
    given = {"network": client(5), "states": [client(seed).state_dict() for seed in (0, 1)], "batches": IMAGES}
    with pytest.raises(DepfuseError, match=message):
        aggregate(**{**given, **change}, recipe=FAST)
