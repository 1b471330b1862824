from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from depfuse.data import DataSet
from depfuse.errors import ArchitectureError, DataError
from depfuse.models import NETWORKS, build_network, check_input, example_shape
from depfuse.models.architecture import parse_architecture


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("width", [0.25, 1.5])
def test_built_in_networks_take_their_example_at_any_width(name: str, width: float) -> None:
    # On the meta device: what is tested are shapes, and full widths take seconds to compute.
    with torch.device("meta"):
        network = build_network(f"{name}(width={width}, classes=7)")
        outputs = network(torch.zeros(2, *example_shape(name)))
    assert outputs.shape == (2, 7)


@pytest.mark.parametrize(
    ("arch", "count"),
    [
        ("cifar_resnet18", 11_173_962),
        ("cifar_resnet34", 21_282_122),
        ("cifar_resnet50", 23_520_842),
        ("cifar_resnet20", 269_722),
        ("cifar_resnet56", 853_018),
        ("digits_resnet", 19_706),
    ],
)
def test_built_in_networks_have_the_published_sizes(arch: str, count: int) -> None:
    with torch.device("meta"):
        assert parameters(build_network(arch)) == count


@pytest.mark.parametrize(("short", "name"), [("resnet18", "cifar_resnet18"), ("resnet20", "cifar_resnet20")])
def test_short_names_are_the_networks_for_small_images(short: str, name: str) -> None:
    assert parse_architecture(short).name == name


def test_options_a_and_b_differ_by_the_projections() -> None:
    padded, projected = build_network("resnet20"), build_network('resnet20(shortcut="B")')
    assert parameters(projected) - parameters(padded) == 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64


def test_vgg_is_built_with_and_without_batch_norm() -> None:
    plain = build_network("vgg11(batch_norm=False, width=0.125)")
    assert not any(isinstance(m, nn.BatchNorm2d) for m in plain.modules())
    normed = build_network("vgg11(width=0.125)")
    assert sum(isinstance(m, nn.BatchNorm2d) for m in normed.modules()) == 8


def test_built_in_resnet20_is_the_published_one(shared: Path) -> None:
    """Same weights, same function as the user's own file."""
    theirs = build_network(f"{shared}/models/cifar_resnet_a.py:resnet20").eval()
    ours = build_network("resnet20").eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(ours(images), theirs(images))


def test_defaults_give_way_to_the_string_and_are_dropped_where_unknown() -> None:
    network = build_network("resnet20(classes=5)", classes=10, unheard_of=1)
    assert network.linear.out_features == 5
    assert build_network("torchvision:squeezenet1_1", classes=4).num_classes == 4


def test_random_weights_follow_the_seed() -> None:
    torch.manual_seed(3)
    first = build_network("digits_resnet")
    torch.manual_seed(3)
    second = build_network("digits_resnet")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_torchvision_networks_are_built_without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_download(*_: object, **__: object) -> None:
        raise AssertionError("weights were fetched")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", no_download)
    with torch.device("meta"):
        network = build_network("torchvision:resnet18(num_classes=3)")
    assert network.fc.out_features == 3
    assert example_shape("torchvision:resnet18") == (3, 224, 224)
    assert example_shape("torchvision:inception_v3") == (3, 299, 299)


def test_timm_networks_say_their_shape() -> None:
    pytest.importorskip("timm")
    assert build_network("timm:resnet18.a1_in1k(in_chans=1)", classes=3).num_classes == 3
    assert example_shape("timm:resnet18(in_chans=1)") == (1, 224, 224)


def test_timm_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ArchitectureError, match="pip install timm"):
        build_network("timm:resnet18")


USERS_FILE = """
from dataclasses import dataclass
from torch import nn
import beside

@dataclass
class Settings:
    width: int = 3

def network(width=3, classes=10):
    return nn.Sequential(nn.Conv2d(1, width, 28), nn.Flatten(), nn.Linear(width, classes))

def broken():
    raise RuntimeError("no such thing\\nand a second line")

def nothing():
    return 5
"""


@pytest.fixture
def users_file(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("value = 1\n")
    file = tmp_path / "my nets.py"
    file.write_text(USERS_FILE)
    return file


def test_a_users_own_file_is_run(users_file: Path) -> None:
    network = build_network(f"{users_file}:network(width=4)", classes=6)
    assert network[2].weight.shape == (6, 4)
    assert example_shape(f"{users_file}:network") == (1, 28, 28)


def test_a_module_in_the_working_folder_is_found(users_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (users_file.parent / "depfuse_test_nets.py").write_text(USERS_FILE)
    monkeypatch.chdir(users_file.parent)
    assert isinstance(build_network("depfuse_test_nets:network"), nn.Sequential)


@pytest.mark.parametrize(
    ("arch", "sentence"),
    [
        ("resnt20", "no built-in network resnt20: did you mean resnet20"),
        ("torchvision:resnet1", "torchvision has no network resnet1: did you mean"),
        ("no_such_module_at_all:net", "there is no module no_such_module_at_all"),
        ("nowhere.py:net", r"there is no file nowhere\.py"),
        ("os:path", "path is no function or class"),
        ("json:loads(s='1')", "gave an int, not a torch.nn.Module"),
        ("resnet20(3)", r"must be like \(key=value"),
        ("resnet20(classes=__import__('os').getpid())", r"must be like \(key=value"),
        ("resnet20(**{'classes': 3})", r"must be like \(key=value"),
        ("resnet20(classes=3", "no architecture"),
        ("resnet20(klasses=3)", "raised TypeError"),
        ("resnet20(shortcut='C')", "neither 'A' nor 'B'"),
        ("resnet20(width=-1)", "width -1 must be positive"),
        ("", "no architecture"),
    ],
)
def test_an_architecture_that_does_not_resolve_is_one_sentence(arch: str, sentence: str) -> None:
    with pytest.raises(ArchitectureError, match=sentence) as caught:
        build_network(arch)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("factory", "sentence"),
    [
        ("broken", "raised RuntimeError: no such thing$"),
        ("nothing", "nothing gave an int"),
        ("netwrk", "has no netwrk: did you mean network"),
    ],
)
def test_a_users_factory_that_fails_is_one_sentence(users_file: Path, factory: str, sentence: str) -> None:
    with pytest.raises(ArchitectureError, match=sentence):
        build_network(f"{users_file}:{factory}")


def test_a_users_file_that_raises_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "nets.py"
    file.write_text("import not_installed_anywhere\n")
    with pytest.raises(ArchitectureError, match=r"importing .* raised ModuleNotFoundError"):
        build_network(f"{file}:net")


@pytest.mark.parametrize("last", ["raise SystemExit", "net = parse", "net = torch.nn.Linear(2, 2)"])
def test_a_users_program_does_not_end_this_one(tmp_path: Path, last: str) -> None:
    """A training that reads its arguments when it is imported, or when the network is built; a network, not built."""
    file = tmp_path / "train.py"
    file.write_text(f"import torch\n\n\ndef parse():\n    raise SystemExit(2)\n\n\n{last}\n")
    said = {
        "raise SystemExit": "runs it as a program, which ends with code 0: put what only a program does below",
        "net = parse": "building it ends with code 2: give a function that reads no arguments of a program",
        "net = torch.nn.Linear(2, 2)": "net is no function or class that builds a network",
    }
    with pytest.raises(ArchitectureError, match=said[last]):
        build_network(f"{file}:net")


def test_images_that_do_not_fit_are_named(digits: DataSet) -> None:
    with pytest.raises(DataError, match="images of shape 1x8x8 do not fit ThinResNet"):
        check_input(build_network("resnet20(width=0.25)"), digits.example())


def test_too_few_outputs_for_the_labels_are_named(digits: DataSet) -> None:
    with pytest.raises(DataError, match="has 5 outputs, but the labels name 10 classes"):
        check_input(build_network("digits_resnet(classes=5)"), digits.example(), classes=10)


def test_checking_leaves_the_network_as_it_was(digits: DataSet) -> None:
    network = build_network("digits_resnet").train()
    network.layer1.eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    check_input(network, digits.example(4), classes=10)
    assert network.training
    assert not network.layer1.training
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
