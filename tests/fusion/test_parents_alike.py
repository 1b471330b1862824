"""Parents may differ in their weights only: their modules are compared, not only their tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from depfuse import Recipe, find_groups, fuse, prove_groups
from depfuse.errors import ArchitectureError, CheckpointError, DepfuseWarning, GroupError, RecipeError
from depfuse.fusion.parents import Parents
from depfuse.fusion.same_modules import check_alike
from depfuse.io.checkpoint import read_checkpoint
from depfuse.io.into_network import load_into

EXAMPLE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A small network with what parents may have otherwise."""

    def __init__(
        self, width: int = 6, act: type[nn.Module] = nn.ReLU, dilation: int = 1, eps: float = 1e-5, slope: float = 1.0
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=dilation, dilation=dilation)
        self.bn, self.act, self.head = nn.BatchNorm2d(width, eps), act(), nn.Linear(width, 4)
        self.slope = slope
        self.register_buffer("order", torch.arange(4))
        self.register_buffer("shift", torch.zeros(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn(self.conv(x))).mean((2, 3)) * self.slope
        return self.head(x)[:, self.order] + self.shift


def test_compiled_parents_are_refused_in_words():
    """TorchScript takes no hooks on its modules, and its operations leave no trace that can be followed."""
    plain = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3)).eval()
    for compiled in (torch.jit.script(plain), torch.jit.trace(plain, EXAMPLE)):
        with pytest.raises(ArchitectureError, match=r"compiled to TorchScript, .* the network that it was made from"):
            fuse(Parents([plain, compiled], example=EXAMPLE), Recipe(refit="none", renorm="none", criterion="weights"))
        with pytest.raises(ArchitectureError, match="compiled to TorchScript"):
            find_groups(compiled, EXAMPLE)


@pytest.mark.parametrize("width", [5, 7])
def test_groups_of_another_network_are_refused(width: int):
    """Groups of fewer channels would move a part of them only."""
    other = prove_groups(Net(width), find_groups(Net(width), EXAMPLE), EXAMPLE)
    recipe = Recipe(refit="none", renorm="none", criterion="weights")
    with pytest.raises(GroupError, match=f"axis 0 of conv.weight has 6 positions, not {width}"):
        fuse(Parents([Net(), Net()], example=EXAMPLE, groups=other), recipe)
    deeper = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1))
    with pytest.raises(GroupError, match=r"0\.weight is in one of them only"):
        fuse(Parents([Net(), Net()], example=EXAMPLE, groups=find_groups(deeper, EXAMPLE)), recipe)


def test_groups_of_a_network_with_tied_weights_fit_it():
    """A tied weight has two names, of which `parameters()` gives one."""
    tied = [nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)) for _ in "ab"]
    for network in tied:
        network[3].weight = network[2].weight
    given = prove_groups(tied[0], find_groups(tied[0], EXAMPLE), EXAMPLE)
    recipe = Recipe(refit="none", renorm="none", criterion="weights")
    known = Parents(tied, example=EXAMPLE, groups=given)
    assert fuse(known, recipe.changed({"align.allow_fixed": True})).groups is given


class Shared(nn.Module):
    """Two layers of one weight, or of two."""

    def __init__(self, seed: int, *, tied: bool) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        if tied:
            self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()).relu())


def test_parents_with_two_tensors_where_the_child_would_have_one_are_refused() -> None:
    """The child had the mean of one of them at both places."""
    tied, other, untied = Shared(0, tied=True), Shared(1, tied=True), Shared(2, tied=False)
    rows = torch.randn(40, 6, dtype=torch.float32)
    recipe = Recipe(refit="none", renorm="none")
    with pytest.raises(
        RecipeError, match=r"parent 1 has one tensor for first\.weight and second\.weight.*parent 2 first"
    ):
        fuse([tied, untied], recipe, rows)
    with pytest.raises(
        RecipeError, match=r"the template has one tensor for first\.weight.*give one that has two as well"
    ):
        fuse(Parents([untied, tied], template=other), recipe, rows)
    for parents in ([untied, tied], [tied, other]):
        result = fuse(parents, recipe, rows)
        for shares, parent in (((1, 0), parents[0]), ((0, 1), parents[1])):
            torch.testing.assert_close(result.at(shares)(rows), parent(rows))


def test_a_file_with_two_tensors_does_not_fit_a_network_with_one(tmp_path: Path) -> None:
    tied, untied = Shared(0, tied=True), Shared(2, tied=False)
    torch.save(untied.state_dict(), tmp_path / "a.pt")
    torch.save(Shared(1, tied=True).state_dict(), tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match=r"first\.weight and second\.weight are two tensors there and one in the"):
        load_into(tied, read_checkpoint(tmp_path / "a.pt"))
    load_into(tied, read_checkpoint(tmp_path / "b.pt"))


def test_groups_that_are_given_are_proved():
    model = Net()
    given = find_groups(model, EXAMPLE)
    assert given.proof_error is None
    recipe = Recipe(refit="none", renorm="none", criterion="weights")
    found = fuse(Parents([model, Net()], example=EXAMPLE, groups=given), recipe).groups
    assert found.proof_error is not None
    assert found.proof_error < 1e-9


def changed(change: Callable[[Net], object]) -> Net:
    network = Net()
    change(network)
    return network


OTHERS = {
    "another activation": (lambda: Net(act=nn.SiLU), r"output of act differs \(act \(ReLU, SiLU\)\)"),
    "an activation that is cut off": (lambda: Net(act=nn.Hardtanh), r"output of act differs"),
    "another dilation": (lambda: Net(dilation=2), r"output of conv differs \(conv.padding"),
    "another epsilon": (lambda: Net(eps=0.1), r"output of bn differs \(bn.eps \(1e-05, 0.1\)\)"),
    "an attribute that forward reads": (lambda: Net(slope=2.0), "output of head differs"),
    "a hook": (
        lambda: changed(lambda net: net.act.register_forward_hook(lambda _module, _inputs, output: output + 1)),
        "output of act differs",
    ),
    "an index": (lambda: changed(lambda net: net.order.copy_(torch.tensor([1, 0, 2, 3]))), "buffer order, which is no"),
    "a buffer beside the state dict": (lambda: changed(lambda net: net.shift.fill_(1.0)), "buffer shift, which no"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_parents_that_differ_in_more_than_weights_are_refused(name: str) -> None:
    make, said = OTHERS[name]
    with pytest.raises(RecipeError, match=said) as caught:
        fuse(Parents([Net(), Net(), make()], example=EXAMPLE), Recipe(criterion="weights", refit="none", renorm="none"))
    assert "parent 3" in str(caught.value)


def test_equal_buffers_and_other_weights_are_alike(recwarn: pytest.WarningsRecorder) -> None:
    check_alike([Net().train(), Net().eval(), Net().half(), nn.DataParallel(Net())], EXAMPLE)
    assert not recwarn.list


def test_a_setting_that_does_not_show_is_warned_of() -> None:
    other = Net()
    other.bn.momentum = 0.01
    with pytest.warns(DepfuseWarning, match=r"bn.momentum \(0.1, 0.01\), which does not show"):
        check_alike([Net(), other], EXAMPLE)


@pytest.mark.parametrize(("width", "example"), [(9, EXAMPLE), (6, None)], ids=["another width", "without an input"])
def test_a_setting_of_training_is_no_other_network_where_outputs_cannot_be_compared(width: int, example: Any) -> None:
    other = Net(width=width)
    other.bn.momentum = 0.01
    with pytest.warns(DepfuseWarning, match=r"bn.momentum \(0.1, 0.01\), which does not show"):
        check_alike([Net(), other], example)
    with pytest.warns(
        DepfuseWarning, match=r"parent 1 and the template differ in bn.mom.*: the child has the template's$"
    ):
        check_alike([Net()], example, other)
    other.bn.eps = 0.1
    with pytest.raises(RecipeError, match=r"bn.eps \(1e-05, 0.1\)"):
        check_alike([Net(), other], example)


@pytest.mark.parametrize("example", [EXAMPLE, None])
def test_widths_may_differ_but_modules_not(example: Tensor | None, recwarn: pytest.WarningsRecorder) -> None:
    check_alike([Net(), Net(width=9)], example)
    assert not recwarn.list
    with pytest.raises(RecipeError, match="act"):
        check_alike([Net(), Net(width=9, act=nn.SiLU)], example)


def test_nothing_of_the_parents_is_changed() -> None:
    networks = [Net().train(), Net().train()]
    before = [{key: value.clone() for key, value in net.state_dict().items()} for net in networks]
    check_alike(networks, EXAMPLE)
    assert all(net.training for net in networks)
    for net, state in zip(networks, before, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


class Anchors(nn.Module):
    """A head that puts its channels into columns of classes, as those of torchvision's detectors do."""

    def __init__(self, classes: int, act: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.classes, self.enter, self.act = classes, nn.Conv2d(3, 6, 3), act()
        self.head = nn.Conv2d(6, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.head(self.act(self.enter(x)))
        return scores.reshape(len(x), -1, self.classes).sigmoid()


def test_a_head_that_keeps_the_number_of_its_classes_is_no_other_network(recwarn: pytest.WarningsRecorder) -> None:
    check_alike([Anchors(2), Anchors(3), Anchors(6)], EXAMPLE)
    assert not recwarn.list
    with pytest.raises(RecipeError, match="output of act differs"):
        check_alike([Anchors(2), Anchors(6, act=nn.SiLU)], EXAMPLE)


def test_each_label_needs_an_output_of_the_parents_and_of_the_child() -> None:
    def of(outputs: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, outputs, 1)).eval()

    pictures, parents = torch.rand(20, 3, 8, 8), [of(3), of(3)]
    with pytest.raises(RecipeError, match="know 4 labels together, and the child's network has 3 outputs"):
        fuse(Parents(parents, [range(3), range(1, 4)], of(3)), "fast", pictures)
    with pytest.raises(RecipeError, match="parent 1 has 3 outputs, and 2 labels are said of it"):
        fuse(Parents(parents, [range(2), range(2, 4)], of(4)), "fast", pictures)
