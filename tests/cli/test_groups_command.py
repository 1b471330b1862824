"""`depfuse groups`: the tree, the summary line, the exit code and the picture."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from conftest import assert_one_sentence
from digits_parents import digits_files
from rich.console import Console
from torch import nn

from depfuse.cli import main
from depfuse.groups import ChannelGroups, find_groups, prove_groups
from depfuse.models import build_network, example_shape
from depfuse.report.channel_map import draw_channels, group_colours
from depfuse.report.group_tree import Detail, group_tree, summary_line


class Network(nn.Module):
    """A residual stream, a concatenation, a grouped convolution and a flatten before the linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.inner, self.back = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1)
        self.grouped = nn.Conv2d(14, 4, 3, padding=1, groups=2)
        self.head = nn.Linear(4 * 16, 5)

    def forward(self, x):
        x = self.norm(self.stem(x))
        y = torch.relu(self.inner(x))
        return self.head(self.grouped(torch.cat([x + self.back(y), y], 1)).flatten(1))


@pytest.fixture(scope="module")
def network() -> tuple[nn.Module, torch.Tensor, ChannelGroups]:
    torch.manual_seed(0)
    model, example = Network(), torch.randn(1, 3, 4, 4)
    return model, example, prove_groups(model, find_groups(model, example), example)


def text_of(tree: object, width: int = 200) -> str:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(tree)
    return capture.get()


def tree_of(network: tuple[nn.Module, torch.Tensor, ChannelGroups], detail: Detail = "usual") -> str:
    model, _, groups = network
    return text_of(group_tree("net", groups, {key: t.shape for key, t in model.state_dict().items()}, detail))


def test_every_member_of_every_group_is_in_the_full_tree(network) -> None:
    text = tree_of(network, "full")
    for group in network[2].free:
        for slot in group.slots:
            module, _, name = slot.key.rpartition(".")
            assert module in text
            assert f".{name}" in text
        for tap in group.taps:
            assert f"{tap.module} {tap.side} ({tap.position})" in text
    assert "more" not in text


def test_members_are_shown_with_role_axis_positions_and_repeats(network) -> None:
    lines = tree_of(network, "full").splitlines()
    stream = next(line for line in lines if "stem: " in line or "stem#" in line)
    assert "channels" in stream
    assert any("produces stem.weight axis 0" in line for line in lines)
    assert any("norm.weight, .bias, .running_mean, .running_var axis 0" in line for line in lines)
    assert any("head.weight axis 1" in line and "x 16" in line for line in lines)
    assert any("of axis 0" in line for line in lines), "the input of a grouped convolution covers the rows of a block"


def test_brief_tree_has_one_line_per_group_or_several_alike(network) -> None:
    lines = tree_of(network, "brief").splitlines()
    free = lines[1 : next(number for number, line in enumerate(lines) if line.endswith("fixed"))]
    assert len(free) <= network[2].count
    assert all("taps" in line or "tap)" in line for line in free)


def test_groups_that_are_alike_are_shown_once() -> None:
    model = nn.Sequential(nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 1, groups=3), nn.Flatten(), nn.Linear(12 * 4, 2))
    groups = find_groups(model, torch.randn(1, 3, 2, 2))
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    text = text_of(group_tree("net", groups, shapes))
    assert groups.count == 7
    assert text.count("0#2 to 4: 3 groups of 4 channels each, the first of them:") == 1
    assert "axis 0 [0:4]" in text


def test_long_lists_are_cut_and_counted() -> None:
    layers = [layer for _ in range(12) for layer in (nn.Linear(4, 4), nn.Identity())]

    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.layers, self.last = nn.Linear(3, 4), nn.ModuleList(layers[::2]), nn.Linear(4, 2)

        def forward(self, x):
            x = self.first(x)
            for layer in self.layers:
                x = x + layer(x)
            return self.last(x)

    model = Stream()
    groups = find_groups(model, torch.randn(1, 3))
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    usual, full = (text_of(group_tree("net", groups, shapes, detail)) for detail in ("usual", "full"))
    assert "and 9 more" in usual
    assert "layers.11.weight" not in usual
    assert "more" not in full
    assert "layers.11.weight" in full


def test_what_is_fixed_comes_last_by_reason(network) -> None:
    lines = tree_of(network).splitlines()
    start = next(number for number, line in enumerate(lines) if line.endswith("fixed"))
    rest = "\n".join(lines[start:])
    assert "touches the network's input" in rest
    assert "groups   stem (input) (3 channels)" in rest
    assert "groups   head (5 channels)" in rest
    assert "tensors  head.bias" in rest
    assert not [line for line in lines[:start] if "touches" in line]


def test_names_are_not_read_as_markup(network) -> None:
    assert "net[bold]" in text_of(group_tree("net[bold]", network[2], {}))


def test_summary_counts_and_names_what_is_not_followed(network) -> None:
    groups = network[2]
    line = summary_line(groups)
    assert line.startswith(f"{groups.count} free groups, {groups.free_channels} channels, ")
    assert "proved, relative error" in line
    assert "not followed" not in line
    worse = groups.fix({groups.free[0].name: "not proved: it moved"})
    assert summary_line(worse).endswith(f"; not followed: {groups.free[0].name} (not proved: it moved)")


@pytest.fixture
def arch(tmp_path: Path) -> str:
    path = tmp_path / "net.py"
    path.write_text(
        "import torch\nfrom torch import nn\n"
        "def plain():\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.Flatten(), nn.Linear(48, 2))\n"
        "class Summed(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a, self.b, self.c = nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)\n"
        "    def forward(self, x):\n"
        "        return self.c(self.b(torch.relu(self.a(x.flatten(1)))).cumsum(1))\n"
    )
    return str(path)


def test_last_line_and_exit_code(arch: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["groups", f"{arch}:plain", "--input-shape", "1,6,6"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("net.py:plain")
    assert lines[-1].startswith("2 free groups, 7 channels, 98.7% of the parameters; proved, relative error")


def test_exit_code_1_names_module_and_operation(arch: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["groups", f"{arch}:Summed", "--input-shape", "1,2,3"]
    assert main(command) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("1 free group, 5 channels")
    assert "not followed: b (Cumsum in the network itself needs their order" in last
    assert main([*command, "--allow-fixed"]) == 0


def test_picture_is_drawn_and_nothing_else_is_left(arch: str, tmp_path: Path) -> None:
    command = ["groups", f"{arch}:plain", "--input-shape", "1,6,6", "--quiet"]
    for kind, magic in (("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")):
        file = tmp_path / f"plot.{kind}"
        assert main([*command, "--plot", str(file)]) == 0
        assert file.read_bytes().startswith(magic)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "net.py", "plot.pdf", "plot.png", "plot.svg",
    ]  # fmt: skip
    assert main([*command, "--plot", str(tmp_path / "plot.txt")]) == 2


def test_picture_shows_the_groups_in_their_colours_and_the_fixed_in_grey(network, tmp_path: Path) -> None:
    model, example, groups = network
    modes = [module.training for module in model.modules()]
    draw_channels("net", model, example, groups, tmp_path / "plot.png")
    assert [module.training for module in model.modules()] == modes
    pixels = (matplotlib.image.imread(tmp_path / "plot.png")[:, :, :3] * 255).round().astype(int)
    found = {tuple(colour) for colour in np.unique(pixels.reshape(-1, 3), axis=0).tolist()}
    colours = group_colours(len(groups))
    produced = [n for n, group in enumerate(groups) if any(s.role == "produces" for s in group.slots)]
    for number in produced:
        if groups.groups[number].fixed is None and groups.groups[number].slots[0].index.shape[1] == 1:
            assert any(all(abs(a - round(255 * b)) <= 1 for a, b in zip(colour, colours[number], strict=True))
                       for colour in found), groups.groups[number].name  # fmt: skip
    assert (204, 204, 204) in found


def test_colours_of_neighbours_differ() -> None:
    colours = np.array(group_colours(300))
    assert np.abs(np.diff(colours, axis=0)).max(axis=1).min() > 0.15


@pytest.mark.parametrize(
    ("arch", "shape"),
    [
        ("torchvision:resnet18", (3, 224, 224)),
        ("torchvision:inception_v3", (3, 299, 299)),
        ("torchvision:swin_v2_t", (3, 256, 256)),
        ("torchvision:vit_h_14", (3, 224, 224)),
        ("torchvision:maxvit_t", (3, 224, 224)),
        ("torchvision:efficientnet_b7", (3, 224, 224)),
        ("torchvision:vit_b_16(image_size=96)", (3, 96, 96)),
    ],
)
def test_example_shapes_come_from_the_weights_descriptions(arch: str, shape: tuple[int, ...]) -> None:
    assert example_shape(arch) == shape


def test_a_forward_pass_that_raises_on_every_shape_is_told_from_a_wrong_shape(tmp_path: Path) -> None:
    path = tmp_path / "nets.py"
    path.write_text(
        "from torch import nn\n"
        "class Broken(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.inside = nn.Sequential(nn.Identity(), Raises())\n"
        "    def forward(self, x):\n"
        "        return self.inside(x)\n"
        "class Raises(nn.Module):\n"
        "    def forward(self, x):\n"
        "        raise ValueError('not today')\n"
    )
    arch = f"{path}:Broken"
    with pytest.raises(Exception, match=r"raises on inputs of any shape: not today \(in inside\.1\)"):
        example_shape(arch, build_network(arch))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "googlenet"])
def test_torchvision_networks_are_printed_and_drawn(name: str, tmp_path: Path, capsys) -> None:
    plot = tmp_path / "plot.png"
    assert main(["groups", f"torchvision:{name}", "--plot", str(plot)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 1400
    assert "proved, relative error" in lines[-1]
    height, width, _ = matplotlib.image.imread(plot).shape
    assert 500 < height < 4000
    assert 500 < width < 4000


def test_an_input_that_does_not_fit_into_memory_is_one_sentence(capsys) -> None:
    command = ["groups", "digits_resnet(width=1.25)", "--input-shape", "1,10000000,10000000"]
    assert_one_sentence(capsys, main(command), "an input of shape 1, 10000000, 10000000 needs", "give a smaller one")


def test_a_file_of_weights_says_its_architecture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = digits_files("a")[0]
    assert main(["groups", path, "--brief"]) == 0
    of_file = capsys.readouterr().out
    assert main(["groups", "digits_resnet(width=1.25)", "--brief"]) == 0
    assert of_file == capsys.readouterr().out
    torch.save({"weight": torch.zeros(3)}, tmp_path / "bare.pt")
    assert main(["groups", str(tmp_path / "bare.pt")]) == 2
    assert "give the architecture in its place" in capsys.readouterr().err
