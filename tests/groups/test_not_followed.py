"""Networks that cannot be followed everywhere: refused in one sentence, or fused but for what is fixed and named."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from depfuse import Recipe, fuse
from depfuse.cli import main
from depfuse.errors import DepfuseWarning, GroupError
from depfuse.fusion.parents import Parents
from depfuse.groups import explain, find_groups, not_followed, prove_groups
from depfuse.io.cards import Card
from depfuse.io.checkpoint import read_checkpoint, write_checkpoint
from depfuse.models import build_network

NETWORKS = '''
import torch
from torch import nn


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 5, 1), nn.Conv2d(5, 4, 1)
        self.middle, self.last = self.between(), nn.Linear(4, 3)

    def between(self):
        return nn.Identity()

    def forward(self, x):
        x = self.middle(torch.relu(self.first(x)))
        return self.last(self.third(torch.relu(self.second(x))).mean((2, 3)))


class Cumsum(nn.Module):
    def forward(self, x):
        return x.cumsum(1)


class WithCumsum(Base):
    def between(self):
        return Cumsum()


class Fourier(nn.Module):
    def forward(self, x):
        return torch.fft.fft(x, dim=1).real


class WithFourier(Base):
    def between(self):
        return Fourier()


class Either(nn.Module):
    """One of two layers, as the input's sign has it: a trace shows one of them."""

    def __init__(self):
        super().__init__()
        self.positive, self.negative = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)

    def forward(self, x):
        return self.positive(x) if x.mean() > 0.3 else self.negative(x)


class WithBranch(Base):
    def between(self):
        return Either()


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls


class WithState(Base):
    def between(self):
        return Counter()


class Failing(nn.Module):
    def forward(self, x):
        raise RuntimeError("there is nothing\\nto be done")


class WithFailure(Base):
    def between(self):
        return Failing()


class WithoutTensor(Base):
    def forward(self, x):
        super().forward(x)
        return "three classes"
'''
UNKNOWN = {
    "WithCumsum": ("Cumsum in middle", {"first"}),
    "WithFourier": ("FftR2C in middle", {"first"}),
    "WithBranch": ("bool() in middle", {"first", "middle.positive", "middle.negative"}),
}
REFUSED = {
    "WithState": ("gives different outputs for the same input",),
    "WithFailure": ("WithFailure", "there is nothing"),
    "WithoutTensor": ("WithoutTensor",),
}


class Place:
    """A folder with the networks above, data, and two checkpoints of one of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "nets.py"
        self.file.write_text(NETWORKS)
        generator = np.random.default_rng(0)
        arrays = {f"x_{part}": generator.integers(0, 256, (30, 6, 6), dtype=np.uint8) for part in ("train", "test")}
        arrays |= {f"y_{part}": np.arange(30) % 3 for part in ("train", "test")}
        np.savez(folder / "data.npz", **arrays)

    def arch(self, name: str) -> str:
        return f"{self.file}:{name}"

    def network(self, name: str, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return build_network(self.arch(name)).eval()

    def run(self, command: str, name: str, *options: str) -> int:
        if command == "groups":
            return main(["groups", self.arch(name), "--input-shape", "1,6,6", *options])
        parents = []
        for seed in (0, 1):
            parents.append(self.folder / f"input-{seed}.safetensors")
            card = Card(architecture=self.arch(name), data=str(self.folder / "data.npz"))
            write_checkpoint(parents[-1], self.network(name, seed).state_dict(), card)
        outputs = {"--out": "child.safetensors", "--report": "report.json", "--plot": "path.png"}
        written = [word for option, file in outputs.items() for word in (option, str(self.folder / file))]
        written += ["--arch", self.arch(name), "--data", str(self.folder / "data.npz")]
        few = ["--refit", "none", "--calibration", "20", "--batch-size", "10"]
        return main([command, *map(str, parents), *few, *written, *options])

    @property
    def outputs(self) -> set[str]:
        names = {path.name for path in self.folder.iterdir() if path.is_file() and not path.name.startswith("input")}
        return names - {"nets.py", "data.npz"}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def one_sentence(capsys: pytest.CaptureFixture[str], *words: str) -> None:
    stdout, stderr = capsys.readouterr()
    assert stdout == ""
    assert stderr.startswith("depfuse: ")
    assert stderr.count("\n") == 1, stderr
    for word in words:
        assert word in stderr


@pytest.mark.parametrize("command", ["fuse", "path"])
@pytest.mark.parametrize("name", UNKNOWN)
def test_what_cannot_be_followed_is_refused(place: Place, capsys, command: str, name: str) -> None:
    assert place.run(command, name, "--no-fixed") == 2
    one_sentence(capsys, "first", UNKNOWN[name][0], "--allow-fixed")
    assert place.outputs == set()


@pytest.mark.parametrize("name", UNKNOWN)
def test_by_default_it_is_refused_where_it_is_most_of_the_network(place: Place, capsys, name: str) -> None:
    """Of WithBranch a third of the parameters are in proved groups, of the others more than half."""
    if name == "WithBranch":
        assert place.run("fuse", name) == 2
        one_sentence(capsys, "only 33% of the parameters", UNKNOWN[name][0], "--allow-fixed")
        assert place.outputs == set()
    else:
        assert place.run("fuse", name) == 0
        assert "the rest, 53% of the parameters, is fused" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["fuse", "path"])
@pytest.mark.parametrize("name", UNKNOWN)
def test_the_rest_is_fused_where_that_is_allowed(place: Place, capsys, command: str, name: str) -> None:
    assert place.run(command, name, "--allow-fixed") == 0
    stderr = capsys.readouterr().err
    assert stderr.startswith("depfuse: warning: ")
    assert stderr.count("\n") == 1
    assert UNKNOWN[name][0] in stderr
    assert "first" in stderr
    assert place.outputs == {"child.safetensors", "report.json", "path.png"}
    child = read_checkpoint(place.folder / "child.safetensors").state
    first, second = (place.network(name, seed).state_dict() for seed in (0, 1))
    torch.testing.assert_close(child["first.bias"], (first["first.bias"] + second["first.bias"]) / 2)
    plain = (first["third.weight"] + second["third.weight"]) / 2
    assert not torch.allclose(child["third.weight"], plain), "the rest is aligned"


@pytest.mark.parametrize("name", UNKNOWN)
def test_groups_shows_it_and_exits_with_1(place: Place, capsys, name: str) -> None:
    assert place.run("groups", name) == 1
    assert UNKNOWN[name][0] in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize("command", ["groups", "fuse", "path"])
@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("options", [(), ("--allow-fixed",)], ids=["", "allowed"])
def test_what_cannot_be_traced_or_proved_is_refused(place: Place, capsys, command: str, name: str, options) -> None:
    assert place.run(command, name, *options) == 2
    one_sentence(capsys, *(REFUSED[name] if command == "groups" or name != "WithoutTensor" else REFUSED[name][:1]))
    assert place.outputs == set()


@pytest.mark.parametrize("name", UNKNOWN)
def test_the_library_warns_unless_it_is_told_to_refuse(place: Place, name: str) -> None:
    networks = [place.network(name, seed) for seed in (0, 1)]
    example = torch.randn(1, 1, 6, 6)
    recipe = Recipe(refit="none", criterion="weights", renorm="none")
    with pytest.warns(DepfuseWarning, match="first") as caught:
        result = fuse(Parents(networks, example=example), recipe.changed({"align.allow_fixed": True}))
    assert UNKNOWN[name][0] in str(caught[0].message)
    assert caught[0].filename == __file__
    assert "third" in result.couplings[1]
    assert "first" not in result.couplings[1]
    with pytest.raises(GroupError, match=r"align\.allow_fixed=true"):
        fuse(Parents(networks, example=example), recipe.changed({"align.allow_fixed": False}))


@pytest.mark.parametrize("name", UNKNOWN)
def test_only_what_is_touched_is_fixed(place: Place, name: str) -> None:
    network, example = place.network(name), torch.randn(1, 1, 6, 6)
    groups = prove_groups(network, find_groups(network, example), example)
    wrong = not_followed(groups)
    layers = {re.sub(r" \(input\)$|\.(weight|bias)$", "", place) for place in wrong}
    assert layers <= UNKNOWN[name][1]
    assert UNKNOWN[name][0] in explain(wrong)
    assert {group.name for group in groups.free} == {"second", "third"}
    assert groups.proof_error <= 1e-9


def test_both_ways_of_a_branch_compute_the_same_after_a_permutation(place: Place) -> None:
    """The proof saw one way only; nothing that the other way reads may have moved."""
    network = place.network("WithBranch").double()
    groups = find_groups(network, torch.randn(1, 1, 6, 6, dtype=torch.float64))
    state = dict(network.state_dict())
    for group in groups.free:
        state = group.permute(state, torch.randperm(group.size))
    other = place.network("WithBranch").double()
    other.load_state_dict(state)
    ways = set()
    network.middle.positive.register_forward_hook(lambda *_: ways.add("positive"))
    network.middle.negative.register_forward_hook(lambda *_: ways.add("negative"))
    for scale in (-3.0, 0.0, 3.0):
        images = torch.randn(2, 1, 6, 6, dtype=torch.float64) + scale
        with torch.no_grad():
            torch.testing.assert_close(other(images), network(images), rtol=0, atol=1e-12)
    assert ways == {"positive", "negative"}


class AsksAboutConstants(nn.Module):
    """Values of shapes, constants and whole numbers decide nothing that the input could change."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)
        self.register_buffer("table", torch.arange(3))

    def forward(self, x):
        if torch.tensor(x.shape[0]) > 0 and bool(self.table.sum() == 3) and int(self.table[1]) == 1:
            x = self.first(x)
        return self.last(torch.relu(x))


def test_constants_may_be_asked_for() -> None:
    groups = find_groups(AsksAboutConstants(), torch.randn(1, 4))
    assert not not_followed(groups)
    assert [group.name for group in groups.free] == ["first"]


def test_the_example_is_left_as_it_was(place: Place) -> None:
    example = torch.randn(1, 1, 6, 6)
    find_groups(place.network("WithBranch"), example)
    assert not example.requires_grad
    assert not vars(example)


class Tied(nn.Module):
    def __init__(self, unused: bool = False) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 1), nn.Linear(1, 3)
        self.unused = nn.Linear(2, 2) if unused else None

    def forward(self, x):
        return self.last(torch.relu(self.first(x)))


@pytest.mark.parametrize("unused", [False, True])
def test_single_channels_and_unused_layers_are_no_failures(unused: bool) -> None:
    groups = find_groups(Tied(unused), torch.randn(1, 4))
    assert groups.fixed_tensors["first.bias"] == "a single channel"
    assert not not_followed(groups)


def test_reasons_of_tensors_count_unless_a_group_says_the_same(place: Place) -> None:
    network = place.network("WithCumsum")
    groups = find_groups(network, torch.randn(1, 1, 6, 6))
    places = list(not_followed(groups))
    assert "first" in places
    assert "first.weight" in groups.fixed_tensors
    assert "first.weight" not in places


def test_long_explanations_are_cut() -> None:
    text = explain({f"layer{number}": f"reason {number % 5}" for number in range(40)})
    assert text.startswith("layer0, layer5, layer10 and 5 more (reason 0); ")
    assert text.endswith("; and 2 more reasons")
