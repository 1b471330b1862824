"""Pickles of arrays are read without running code; linear weights are turned by layout and module, not by shape."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from depfuse.data import Loader, load_data
from depfuse.errors import CheckpointError, DepfuseWarning
from depfuse.evaluate import evaluate
from depfuse.io.checkpoint import read_checkpoint
from depfuse.io.into_network import load_into
from depfuse.models import build_network


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("wrap", [dict, OrderedDict, lambda state: {"state_dict": dict(state), "epoch": 3}])
def test_arrays_of_every_common_kind_are_read(tmp_path: Path, protocol: int, wrap) -> None:
    generator = np.random.default_rng(0)
    arrays = {
        "conv.weight": generator.standard_normal((3, 2, 5)).astype(np.float32),
        "wide": np.asfortranarray(generator.standard_normal((3, 4))),
        "big_endian": generator.standard_normal(4).astype(">f4"),
        "counts": np.arange(6).reshape(2, 3),
    }
    extra = {"lr": 0.1, "names": ["a", ("b", 2)], "best": np.float32(0.5)}
    (tmp_path / "net.dat").write_bytes(pickle.dumps(wrap({**arrays, **extra}), protocol=protocol))
    read = read_checkpoint(tmp_path / "net.dat")
    assert read.state.keys() == arrays.keys()
    for key, value in arrays.items():
        np.testing.assert_array_equal(read.state[key].numpy(), value)


def test_tensors_in_a_plain_pickle_are_read_as_they_are(tmp_path: Path) -> None:
    network = nn.Linear(4, 4)
    whole = torch.arange(12.0)
    state = {**network.state_dict(), "part": whole[2:10].reshape(4, 2).T}
    (tmp_path / "net.pkl").write_bytes(pickle.dumps(state))
    read = read_checkpoint(tmp_path / "net.pkl")
    assert read.layout == "torch"
    assert all(torch.equal(read.state[key], value) for key, value in state.items())


class Runs:
    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    "call",
    [
        (eval, "open(MARK, 'w')"),
        (subprocess.getoutput, "touch MARK"),
        (getattr, dict, "__class__"),
        (np.fromfile, "MARK"),
        (torch.load, "MARK"),
    ],
)
def test_nothing_else_is_called(tmp_path: Path, protocol: int, call) -> None:
    mark = tmp_path / "mark"
    function, *arguments = call
    arguments = [a.replace("MARK", f"{str(mark)!r}") if isinstance(a, str) else a for a in arguments]
    data = pickle.dumps({"weight": np.ones(3), "other": Runs(function, *arguments)}, protocol=protocol)
    (tmp_path / "net.dat").write_bytes(data)
    if protocol == 0:
        with pytest.raises(CheckpointError, match="no checkpoint"):
            read_checkpoint(tmp_path / "net.dat")
    else:
        assert read_checkpoint(tmp_path / "net.dat").state["weight"].tolist() == [1, 1, 1]
    assert not mark.exists()


def test_attributes_set_on_what_a_pickle_may_call_do_not_last(tmp_path: Path) -> None:
    # GLOBAL collections.OrderedDict, then BUILD with an attribute of its own.
    (tmp_path / "net.dat").write_bytes(b"\x80\x02ccollections\nOrderedDict\n}X\x08\x00\x00\x00functionK\x01sb.")
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / "net.dat")
    (tmp_path / "good.dat").write_bytes(pickle.dumps(OrderedDict(weight=np.ones(3))))
    assert read_checkpoint(tmp_path / "good.dat").state["weight"].tolist() == [1, 1, 1]


def test_objects_strings_and_damage_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "net.dat"
    good = pickle.dumps({"weight": np.ones(300)})
    for data in (pickle.dumps({"weight": np.array([{}, 1], dtype=object)}), pickle.dumps({"w": np.array(["text"])})):
        file.write_bytes(data)
        with pytest.raises(CheckpointError, match="holds no tensors"):
            read_checkpoint(file)
    for data in (good[:200], good[:60] + b"\xff" * 30 + good[90:150], good.replace(b"M,\x01", b"M-\x01")):
        file.write_bytes(data)
        with pytest.raises(CheckpointError, match="damaged or cut off"):
            read_checkpoint(file)


class Square(nn.Module):
    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm1d(5)
        self.table = nn.Embedding(5, 5)
        self.square = nn.Linear(5, 5)
        self.head = nn.Linear(5, outputs)


def paddle_state(network: nn.Module, transposed: tuple[str, ...]) -> dict[str, np.ndarray]:
    state = {k: v.numpy() for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    state |= {key: state[key].T.copy() for key in transposed}
    names = {"norm.running_mean": "norm._mean", "norm.running_var": "norm._variance"}
    return {names.get(key, key): value for key, value in state.items()}


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_linear_weights_are_turned_by_module_and_layout_not_by_shape(tmp_path: Path) -> None:
    network, file = Square(2), tmp_path / "net.pdparams"
    linear = ("square.weight", "head.weight")
    for state, is_same in ((paddle_state(network, linear), True), (paddle_state(network, ()), True)):
        file.write_bytes(pickle.dumps(state))
        loaded = Square(2)
        load_into(loaded, read_checkpoint(file))
        assert same(loaded, network) == is_same
    file.write_bytes(pickle.dumps(paddle_state(network, ("square.weight", "head.weight", "table.weight"))))
    loaded = Square(2)
    load_into(loaded, read_checkpoint(file))
    assert torch.equal(loaded.table.weight, network.table.weight.T)


def test_square_weights_alone_are_taken_as_paddles_with_a_warning_unless_marked(tmp_path: Path) -> None:
    network, file, loaded = Square(5), tmp_path / "net.pdparams", Square(5)
    state = paddle_state(network, ("square.weight", "head.weight"))
    file.write_bytes(pickle.dumps(state))
    with pytest.warns(DepfuseWarning, match="square linear weights"):
        load_into(loaded, read_checkpoint(file))
    assert same(loaded, network)
    file.write_bytes(pickle.dumps({**state, "StructuredToParameterName@@": {"square.weight": "linear_0.w_0"}}))
    loaded = Square(5)
    load_into(loaded, read_checkpoint(file))
    assert same(loaded, network)


@pytest.mark.parametrize("framework", ["paddle", "jittor"])
def test_the_published_networks_are_the_same_in_every_framework(shared: Path, framework: str) -> None:
    data = load_data(str(shared / "data" / "mnist.npz"))
    some = Loader(data.test.take(torch.arange(0, 10_000, 20)), data.preprocessing, batch_size=500)
    for number, accuracy in ((1, 0.8418), (2, 0.8381)):
        network, original = (build_network(f"{shared}/models/simplenet.py:simplenet") for _ in range(2))
        stem = f"example_model_fusion_{number}"
        load_into(original, read_checkpoint(shared / "checkpoints" / "mnist-simplenet" / f"{stem}.dat"))
        load_into(network, read_checkpoint(shared / "checkpoints" / "mnist-simplenet" / f"{stem}_{framework}.dat"))
        assert same(network, original)
        # Of 10,000 images it is met to the image, by a slow test of the evaluation; 500 have a standard error of 0.016.
        assert evaluate(network, some).accuracy == pytest.approx(accuracy, abs=0.05)
    assert not {"paddle", "jittor"} & sys.modules.keys()
