"""What a caller has switched on changes no child, and fusions beside each other do not disturb one another."""

from __future__ import annotations

import ast
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import depfuse
from depfuse import DepfuseWarning, Recipe, find_groups, fuse, prove_groups
from depfuse.align import align
from depfuse.data import DataSet, Loader, calibration_loader
from depfuse.data.tensors import Split
from depfuse.errors import RecipeError
from depfuse.evaluate import evaluate
from depfuse.networks.isolation import seeded, undisturbed, without_warnings
from depfuse.renorm import renormalise
from depfuse.teach.distil import Distillation
from depfuse.train import TrainRecipe, fit


class Net(nn.Module):
    """Two convolutions, BatchNorm, a pool and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 10)

    def forward(self, images: Tensor) -> Tensor:
        images = self.norm1(self.conv1(images)).relu()
        return self.head(self.norm2(self.conv2(images)).relu().mean((2, 3)))


def drawn(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    model = Net()
    for norm in (model.norm1, model.norm2):
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    return model.state_dict()


STATES = drawn(0), drawn(1)


def pair() -> list[Net]:
    """The same two networks each time, whose tensors are made here."""
    parents = [Net().float() for _ in STATES]
    for parent, state in zip(parents, STATES, strict=True):
        parent.load_state_dict(state)
    return parents


@contextmanager
def float64_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


SWITCHED: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "float64": float64_by_default,
}
FLOATING = ("eye", "linspace", "logspace", "normal", "ones", "rand", "randn", "zeros")
MERGED = Recipe(refit="none", renorm="reset")
REFITTED = Recipe(refit="ridge", refit_steps=2)
SOLVERS = ("coordinate-descent", "frank-wolfe", "spectral")
RECIPES = {
    "merged": MERGED,
    "by weights": Recipe(refit="none", criterion="weights"),
    "refitted": REFITTED,
    "repaired": Recipe(refit="none", renorm="repair"),
    "fisher": Recipe(refit="none", average="fisher"),
    "implicit": Recipe(refit="none", solver="sinkhorn-implicit", iterations=3),
    **{name: Recipe(refit="none", solver=name, criterion="weights") for name in SOLVERS},
}


def child_of(digits: DataSet, recipe: Recipe) -> dict[str, Tensor]:
    parents = pair()
    images = calibration_loader(digits, 100, batch_size=50)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DepfuseWarning)
        child = fuse(parents, recipe, images).child
    return child.state_dict()


def differing(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    return [key for key, tensor in wanted.items() if not torch.equal(tensor, found[key])]


@pytest.mark.parametrize("name", RECIPES)
def test_a_child_does_not_depend_on_what_the_caller_has_switched_on(digits: DataSet, name: str) -> None:
    wanted = child_of(digits, RECIPES[name])
    for switch, context in SWITCHED.items():
        with context():
            found = child_of(digits, RECIPES[name])  # its parents and images are made there as well
            assert {tensor.dtype for tensor in found.values()} == {tensor.dtype for tensor in wanted.values()}
        assert differing(found, wanted) == [], switch


@pytest.mark.parametrize("name", ["merged", "refitted", "repaired", "by weights", "frank-wolfe"])
def test_nor_on_where_tensors_are_made_by_default(digits: DataSet, name: str) -> None:
    """On the meta device, which stands for a GPU here, tensors hold no numbers."""
    parents, images = pair(), calibration_loader(digits, 100, batch_size=50)
    wanted = fuse(parents, RECIPES[name], images).child.state_dict()
    with torch.device("meta"):
        result = fuse(parents, RECIPES[name], images)
        again = result.at((0.5, 0.5))
        groups = prove_groups(parents[0], find_groups(parents[0], images.images[:1].float()), images.images[:1].float())
        scores = evaluate(result.child, images)
    assert differing(result.child.state_dict(), wanted) == differing(again.state_dict(), wanted) == []
    assert groups.free_channels == 20
    assert scores.loss == evaluate(result.child, images).loss


@pytest.mark.parametrize("switch", SWITCHED)
def test_training_and_distilling_do_not_either(digits: DataSet, switch: str) -> None:
    few = calibration_loader(digits, 250)
    data = DataSet("few", digits.classes, Split(few.images, few.labels), digits.test, digits.preprocessing)

    def made(model: Net) -> tuple[dict[str, Tensor], dict[str, Tensor], float]:
        recipe = Recipe(refit="none", distil=1, learning_rate=0.05)
        fit(model, data, TrainRecipe.create(epochs=1))
        child = fuse(pair(), recipe, few, training=Distillation(data)).child
        return model.state_dict(), child.state_dict(), evaluate(child, few).loss

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DepfuseWarning)
        trained, child, loss = made(pair()[0])
        model = pair()[0]
        with SWITCHED[switch]():
            again, other, same = made(model)
    assert differing(again, trained) == []
    assert differing(other, child) == []
    assert same == loss


def test_a_training_in_bfloat16_sees_the_weights_that_it_changed(digits: DataSet) -> None:
    """Within a caller's autocast, even one that is switched off, torch keeps the weights that it has cast."""
    few = calibration_loader(digits, 250)
    data = DataSet("few", digits.classes, Split(few.images, few.labels), digits.test, digits.preprocessing)

    def trained(*autocasts: AbstractContextManager[object]) -> dict[str, Tensor]:
        (model, _), recipe = pair(), TrainRecipe.create(epochs=2, batch_size=50, precision="bfloat16")
        with ExitStack() as stack:
            for autocast in autocasts:
                stack.enter_context(autocast)
            fit(model, data, recipe)
        return model.state_dict()

    wanted, on = trained(), SWITCHED["autocast"]
    assert differing(trained(on()), wanted) == []
    assert differing(trained(on(), torch.autocast("cpu", enabled=False)), wanted) == []


def test_every_random_number_and_matrix_has_a_type() -> None:
    found = [
        f"{file.name}:{call.lineno}"
        for file in Path(depfuse.__path__[0]).rglob("*.py")
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call)
        and ast.unparse(call.func) in {f"torch.{name}" for name in FLOATING}
        and not {"dtype", None} & {keyword.arg for keyword in call.keywords}
    ]
    assert found == []


def test_what_was_switched_on_is_switched_on_afterwards(digits: DataSet) -> None:
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        child_of(digits, MERGED)
        assert torch.is_autocast_enabled("cpu")
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        child_of(digits, MERGED)
        assert torch.is_inference_mode_enabled()
    with torch.inference_mode(), undisturbed():
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()


def in_threads(work: Callable[[int], None], count: int = 4) -> None:
    wrong: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        raise wrong[0]


@pytest.mark.parametrize("name", ["merged", "refitted", "repaired"])
def test_threads_may_fuse_the_same_parents(digits: DataSet, name: str) -> None:
    parents = [parent.train() for parent in pair()]
    images = calibration_loader(digits, 100, batch_size=50)
    wanted = fuse(parents, RECIPES[name], images).child.state_dict()
    before = [parent.state_dict() for parent in parents]
    before = [{key: tensor.clone() for key, tensor in state.items()} for state in before]

    def work(_: int) -> None:
        assert differing(fuse(parents, RECIPES[name], images).child.state_dict(), wanted) == []

    in_threads(work)
    for parent, state in zip(parents, before, strict=True):
        assert differing(parent.state_dict(), state) == []
        assert all(module.training for module in parent.modules())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in parent.modules())


def test_threads_may_ask_for_parts_of_it(digits: DataSet) -> None:
    parents = [parent.train() for parent in pair()]
    images = calibration_loader(digits, 100, batch_size=50)
    example = digits.example(1)
    groups = prove_groups(parents[0], find_groups(parents[0], example), example)
    wanted = align(parents, groups, MERGED.align, images).couplings[1]
    loss = evaluate(parents[0], images).loss

    def work(number: int) -> None:
        for _ in range(3):
            if number == 0:
                found = prove_groups(parents[0], find_groups(parents[0], example), example)
                assert found.covered_share == groups.covered_share
            elif number == 3:
                assert evaluate(parents[0], images).loss == pytest.approx(loss)
            else:
                couplings = align(parents, groups, MERGED.align, images).couplings[1]
                assert all(torch.equal(couplings[key].matrix, coupling.matrix) for key, coupling in wanted.items())

    in_threads(work)


def test_only_other_libraries_warn_in_vain() -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with without_warnings():
            warnings.warn("of torch's", UserWarning, stacklevel=1)
            warnings.warn("of depfuse's", DepfuseWarning, stacklevel=1)
    assert [str(warning.message) for warning in said] == ["of depfuse's"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", DepfuseWarning)
        with without_warnings(), pytest.raises(DepfuseWarning):
            warnings.warn("of depfuse's", DepfuseWarning, stacklevel=1)


def test_draws_of_torch_are_seeded_and_leave_its_generator_alone() -> None:
    torch.manual_seed(5)
    with seeded(1, torch.device("cpu")):
        first = torch.rand(3)
    with seeded(1, torch.device("cpu")):
        assert torch.equal(torch.rand(3), first)
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), after)


def test_a_network_made_in_inference_mode_is_not_trained(digits: DataSet) -> None:
    with torch.inference_mode():
        model = pair()[0]
    with pytest.raises(RecipeError, match="made in inference mode"):
        fit(model, digits, TrainRecipe.create(epochs=1))
    with pytest.raises(RecipeError, match="made in inference mode"):
        renormalise(model, "reset", calibration_loader(digits, 100))


def test_images_of_an_inference_mode_can_be_learned_from(digits: DataSet) -> None:
    with torch.inference_mode():
        images = calibration_loader(digits, 100, batch_size=50)
        inside = Loader(Split(images.images.clone(), images.labels.clone()), images.preprocessing, batch_size=50)
    assert inside.images.is_inference()
    assert differing(fuse(pair(), REFITTED, inside).child.state_dict(), child_of(digits, REFITTED)) == []
