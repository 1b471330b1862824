"""Networks that give a dictionary or a tuple: matched and merged as others; a refit learns what counts of it."""

from __future__ import annotations

import copy
import warnings
from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from depfuse import Parents, Recipe, fuse
from depfuse.data import Loader, Preprocessing, Split
from depfuse.errors import DataError, DepfuseWarning, RecipeError
from depfuse.tasks.outputs import as_numbers


class Structured(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.Linear(12, 5)
        self.kind = kind

    def forward(self, x: Tensor) -> object:
        features = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        scores = self.head(features)
        if self.kind == "plain":
            return scores
        return {"out": scores, "sum": features.sum(1)} if self.kind == "dictionary" else (scores, features.sum(1))


def images() -> Loader:
    pixels = torch.randint(0, 256, (60, 1, 6, 6), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return Loader(Split(pixels, torch.zeros(60, dtype=torch.int64)), Preprocessing(), batch_size=20)


@pytest.mark.parametrize("kind", ["dictionary", "tuple"])
def test_a_permuted_copy_is_recovered(kind: str) -> None:
    parent = Structured(kind).eval()
    other, order = copy.deepcopy(parent), torch.randperm(12)
    state = {key: value[order] if value.shape[:1] == (12,) else value for key, value in parent.state_dict().items()}
    other.load_state_dict({**state, "head.weight": parent.head.weight[:, order]})
    child = fuse([parent, other], Recipe(refit="none", renorm="none"), images()).child
    batch = torch.rand(7, 1, 6, 6)
    for found, wanted in zip(tree_leaves(child(batch)), tree_leaves(parent(batch)), strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.filterwarnings("ignore::depfuse.errors.DepfuseWarning")  # of networks that were never trained
@pytest.mark.parametrize("settings", [{"refit": "ridge"}, {"goal": "best"}])
def test_where_no_output_is_known_to_count_all_do(settings: dict[str, str]) -> None:
    result = fuse([Structured("tuple"), Structured("tuple")], Recipe(**settings), images())
    assert result.recipe.task.name == "weighted"
    assert result.meaning.because.startswith("2 tensors count: 0, classes (assumed), weight 1; 1, regression")


def test_one_task_of_several_outputs_is_refused_in_words() -> None:
    with pytest.raises(RecipeError, match="give a tuple of outputs"):
        fuse([Structured("tuple"), Structured("tuple")], Recipe(refit="ridge"), images(), task="classes")


@pytest.mark.parametrize("kind", ["dictionary", "tuple"])
def test_a_refit_learns_what_counts_as_if_it_were_all(kind: str) -> None:
    plain = [Structured("plain").eval() for _ in range(2)]
    parents = [Structured(kind).eval() for _ in plain]
    for parent, other in zip(parents, plain, strict=True):
        parent.load_state_dict(other.state_dict())
    recipe = Recipe(refit={"name": "ridge", "steps": 8})
    chosen = None if kind == "dictionary" else lambda output: output[0]  # an entry `out` is found
    result = fuse(parents, recipe, images(), scores=chosen)
    wanted = fuse(plain, recipe, images()).child.state_dict()
    for key, found in result.child.state_dict().items():
        torch.testing.assert_close(found, wanted[key])
    assert type(result.child(torch.rand(2, 1, 6, 6))) is type(parents[0](torch.rand(2, 1, 6, 6)))
    assert result.recipe.task.name == "classes"
    scores = result.comparison(images())
    assert scores.child.count == 60
    whole = parents[0](torch.rand(2, 1, 6, 6))
    assert type(whole) is (dict if kind == "dictionary" else tuple), "the parents stay as they were"
    unlabelled = result.comparison(Loader(Split(images().images), Preprocessing(), batch_size=20))
    assert 0 <= unlabelled.child.ensemble <= 1


@pytest.mark.parametrize(
    ("scores", "sentence"),
    [
        (lambda output: output["head"], "`scores` fails on an output of type dict"),
        (lambda output: output, "`scores` gives a dict"),
        (lambda output: output["out"].argmax(1), "`scores` gives a torch.int64"),
    ],
)
def test_a_wrong_choice_is_one_sentence(scores: Any, sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        fuse([Structured("dictionary"), Structured("dictionary")], "fast", images(), scores=scores)


def test_numbers_of_an_image_stand_in_one_column() -> None:
    first, second = torch.rand(4, 2, 3), torch.rand(4)
    numbers = as_numbers({"a": first, "b": (second, torch.zeros(4, dtype=torch.int64))})
    assert numbers.shape == (4, 7, 1)
    assert torch.equal(numbers[:, 6, 0], second)
    assert as_numbers(first) is first
    with pytest.raises(DataError, match="an entry for each image"):
        as_numbers((first, torch.rand(3)))


def test_what_a_call_makes_of_an_output_is_learned_as_what_a_network_returns() -> None:
    def parents() -> list[nn.Module]:
        return [nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval() for _ in range(2)]

    images = torch.randn(40, 6)
    networks = parents()
    made = fuse(
        networks, "fast", images, call=lambda model, batch: {"logits": model(batch), "more": batch}, task="classes"
    )
    alone = fuse(networks, "fast", images, task="classes")
    assert made.recipe.task.name == "classes"
    torch.testing.assert_close(made.child(images), alone.child(images), atol=1e-5, rtol=1e-5)
    assert not any(key.startswith("_depfuse") for key in vars(made.child))
    with pytest.raises(RecipeError, match="say which, as `scores`"):
        fuse(parents(), "fast", images, call=lambda model, batch: [model(batch), batch], task="classes")
    passed = fuse(parents(), "fast", images, call=lambda model, batch: model(batch), task="classes")
    assert passed.recipe.task.name == "classes"


@dataclass(frozen=True)
class Scored:
    """What no pytree knows."""

    scores: Tensor
    names: tuple[str, ...] = ()


class Named(dict[str, Any]):
    """A dictionary with its keys as attributes, as many libraries have one."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class Own:
    """An object of a class of the user's."""

    def __init__(self, scores: Tensor) -> None:
        self.scores, self.names = scores, ()


class Shaped(Structured):
    """Class scores, given in another form."""

    def __init__(self, form: Callable[[Tensor], Any]) -> None:
        super().__init__("plain")
        self.form = form

    def forward(self, x: Tensor) -> Any:
        return self.form(super().forward(x))


def shaped(form: Callable[[Tensor], Any]) -> list[nn.Module]:
    """Two networks, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return [Shaped(form).eval() for _ in range(2)]


@pytest.mark.filterwarnings("ignore::depfuse.errors.DepfuseWarning")
@pytest.mark.parametrize(
    "form",
    [
        lambda y: Scored(y),
        lambda y: {"first": [Scored(y)], "count": 3},
        lambda y: (y, y.mean()),  # a loss is no output of an image
        lambda y: {"a": {"b": [(y,)]}, "chosen": y.argmax(1)},
        lambda y: Named(logits=y, loss=None),
        lambda y: UserDict(out=Own(y)),
        lambda y: SimpleNamespace(scores=y),
    ],
    ids=["data class", "nested", "with a loss", "deep", "dictionary of its own", "objects", "namespace"],
)
@pytest.mark.parametrize("task", [None, "classes"])
def test_the_one_tensor_that_counts_is_found_in_any_structure(form: Callable[[Tensor], Any], task: str | None) -> None:
    # Batches of another size draw other shifts.
    recipe = Recipe(refit={"name": "ridge", "steps": 4, "augment": False})
    result = fuse(shaped(form), recipe, images(), task=task)
    plain = fuse(shaped(lambda y: y), recipe, images(), task=task)
    assert result.recipe.task.name == "classes"
    for key, found in result.child.state_dict().items():
        torch.testing.assert_close(found, plain.child.state_dict()[key])
    assert result.comparison(images()).child.count == 60
    assert type(result.child(torch.rand(2, 1, 6, 6))) is type(form(torch.rand(2, 5)))


@pytest.mark.filterwarnings("ignore::depfuse.errors.DepfuseWarning")
@pytest.mark.parametrize(
    "form", [lambda y: y.mean(), lambda y: y.mean(0), lambda y: y.T], ids=["loss", "mean", "turned"]
)
def test_outputs_without_an_entry_for_each_image_are_merged_only(form: Callable[[Tensor], Any]) -> None:
    result = fuse(shaped(form), Recipe(), images())
    assert result.meaning.task is None
    assert "no entry for each of them" in result.meaning.because
    assert result.recipe.refit.name == "none"
    with pytest.raises(RecipeError, match=r"steps that compare the outputs for each image.*refit\.steps 0"):
        fuse(shaped(form), Recipe(refit="ridge"), images())
    with pytest.raises(RecipeError, match="no entry for each of them"):
        fuse(shaped(form), Recipe(), images(), task="regression")


def test_nan_in_an_output_is_said() -> None:
    parents = shaped(lambda y: y.where(torch.arange(len(y))[:, None] != 2, torch.nan))
    with pytest.raises(DataError, match="parent 1 gives NaN for 3 of 60 calibration images"):
        fuse(parents, "fast", images())


def test_probabilities_are_no_logits() -> None:
    with pytest.warns(DepfuseWarning, match="all outputs lie between 0 and 1, as what a sigmoid gives"):
        fuse(shaped(torch.sigmoid), "fast", images(), task="multilabel")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fuse(shaped(torch.sigmoid), "fast", images(), task="multilabel", scores=torch.logit)
    assert not [own for own in said if "sigmoid" in str(own.message)]


@pytest.mark.parametrize("task", [None, "classes"])
def test_probabilities_of_classes_are_no_logits(task: str | None) -> None:
    """Their softmax is nearly even: a child learned hardly anything from it."""
    with pytest.warns(DepfuseWarning, match="the outputs are probabilities that sum to one, as what a softmax gives"):
        fuse(shaped(lambda y: y.softmax(1)), "fast", images(), task=task)
    for form, scores in ((lambda y: y.softmax(1), torch.log), (lambda y: y.log_softmax(1), None), (lambda y: y, None)):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            fuse(shaped(form), "fast", images(), task=task, scores=scores)
        assert not [own for own in said if "softmax" in str(own.message)]


@pytest.mark.parametrize("task", ["regression", "features"])
def test_numbers_and_embeddings_have_no_labels(task: str) -> None:
    networks = [nn.Sequential(nn.Flatten(), nn.Linear(36, 6), nn.ReLU(), nn.Linear(6, n)).eval() for n in (2, 2, 4)]
    parents = Parents(networks[:2], labels=[[0, 1], [2, 3]], template=networks[2])
    with pytest.raises(RecipeError, match=f"the outputs are of task {task}: name a `task` of classes, dense, multi"):
        fuse(parents, "fast", images(), task=task)
