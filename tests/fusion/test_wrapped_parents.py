"""Parents as programs hold them: wrapped, in a LightningModule, or not to be fused, which is said in one sentence."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor, nn
from torch.distributed import destroy_process_group, init_process_group
from torch.nn.parallel import DistributedDataParallel

from depfuse import FusionResult, fuse, naive_average
from depfuse.errors import DepfuseError, DepfuseWarning

IMAGES = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 4
RECIPE = {"preset": "git-re-basin", "renorm": "reset"}


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    body = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*body, nn.Linear(8, 4)).eval()


class Bare(lightning.LightningModule):
    """Its network runs in its steps alone."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.loss = net, nn.CrossEntropyLoss()


class Whole(Bare):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@pytest.fixture(scope="module")
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    file = tmp_path_factory.mktemp("group") / "store"
    init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    yield
    destroy_process_group()


def compiled(net: nn.Module) -> Any:
    """A compiled network that has run, so that its graph is there."""
    made = torch.compile(net, backend="eager")
    made(IMAGES[:2])
    return made


WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": DistributedDataParallel,
    "compile": compiled,
    "compile in DataParallel": lambda net: nn.DataParallel(compiled(net)),
    "Fabric": lambda net: lightning.Fabric(accelerator="cpu", devices=1).setup_module(net),
    "LightningModule without forward": Bare,
    "LightningModule": Whole,
}


@pytest.fixture(scope="module")
def wanted() -> FusionResult:
    """The fusion of the plain networks, with its scores."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DepfuseWarning)
        result = fuse([network(seed) for seed in (0, 1)], RECIPE, IMAGES)
        result.comparison((IMAGES, LABELS))
    return result


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.filterwarnings("ignore::depfuse.errors.DepfuseWarning")
def test_wrapped_parents_have_the_child_of_the_plain_ones(name: str, wanted: FusionResult) -> None:
    plain = [network(seed) for seed in (0, 1)]
    wrapped = [WRAPPERS[name](copy.deepcopy(own)) for own in plain]
    found = fuse(wrapped, RECIPE, IMAGES)
    assert type(found.child) is (Whole if name == "LightningModule" else nn.Sequential)
    with torch.no_grad():
        assert torch.equal(found.child(IMAGES), wanted.child(IMAGES))
        averages = [naive_average(parents, (0.5, 0.5), wanted.groups) for parents in (wrapped, plain)]
        assert torch.equal(*(average.eval()(IMAGES) for average in averages))
    assert wanted.compared is not None
    assert found.comparison((IMAGES, LABELS)).child == wanted.compared.child


def test_a_wrapped_parent_keeps_its_type() -> None:
    half = [Bare(network(seed).half()) for seed in (0, 1)]
    assert {tensor.dtype for tensor in fuse(half, "git-re-basin", IMAGES).child.parameters()} == {torch.float16}


def sparse(net: nn.Sequential) -> nn.Module:
    net[5].weight = nn.Parameter(net[5].weight.detach().to_sparse())
    return net


def lazy(net: nn.Module) -> nn.Module:
    return nn.Sequential(nn.LazyConv2d(8, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))


class Two(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.generator, self.critic = network(), network()


REFUSED: list[tuple[Callable[[nn.Sequential], Any], str]] = [
    (torch.jit.script, "is compiled to TorchScript, in which operations cannot be followed: give the network that"),
    (lambda net: torch.jit.trace(net, IMAGES[:2]), "is compiled to TorchScript"),
    (lambda net: net.to("meta"), r"parent 1 has no weights yet \(0.weight is on the meta device\): load them first"),
    (lambda net: torch.ao.quantization.quantize_dynamic(net, {nn.Linear}), "parent 1 is quantised"),
    (sparse, r"parent 1 holds sparse values in 5.weight: make them dense"),
    (lazy, r"parent 1 has no weights yet \(0.weight is of a lazy layer\): run it once"),
    (lambda net: torch.export.export(net, (IMAGES[:2],)).module(), "parent 1 is an exported program: give the network"),
    (lambda net: torch.export.export(net, (IMAGES[:2],)), "parent 1 is an ExportedProgram, not an nn.Module"),
    (lambda net: net.state_dict(), "not an nn.Module: make the network, and load them by its load_state_dict"),
    (lambda net: Two(), r"2 networks inside \(generator, critic\): give one network"),
]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(("kind", "sentence"), REFUSED)
def test_what_cannot_be_fused_is_refused_in_a_sentence(kind: Callable[[nn.Sequential], Any], sentence: str) -> None:
    with pytest.raises(DepfuseError, match=sentence) as caught:
        fuse([kind(network(0)), kind(network(1))], RECIPE, IMAGES)
    assert "\n" not in str(caught.value)
