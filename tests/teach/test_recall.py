"""How well each of several networks knows each class, estimated without labels, and one head that begins with it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from depfuse import Recipe, fuse, load
from depfuse.data import Loader, calibration_loader, load_data, select_share
from depfuse.ensemble.ensemble import Ensemble
from depfuse.ensemble.label_sets import LabelSets
from depfuse.errors import RecipeError
from depfuse.evaluate import evaluate_ensemble
from depfuse.models import build_network
from depfuse.models.demo import PARENTS
from depfuse.recipe.sections import Teach
from depfuse.teach.information_maximisation import mutual_information
from depfuse.teach.joint_head import HeadFit, renewed, with_joint_head
from depfuse.teach.recall import estimate_recall
from depfuse.teach.teachers import prepare_teachers
from depfuse.train import TrainRecipe, fit

SHARES = (0.25,) * 4


@pytest.fixture(scope="module")
def data():
    return load_data("digits")


@pytest.fixture(scope="module")
def clients(data) -> list[nn.Module]:
    """Four networks of Dirichlet(0.1) shares: each saw some of the classes, over an output for each."""
    found = []
    for number in range(len(SHARES)):
        torch.manual_seed(number)
        model = build_network("digits_resnet(width=0.5)")
        own = select_share(data, number, len(SHARES), alpha=0.1, seed=0)
        fit(model, own, TrainRecipe(epochs=10, batch_size=16, learning_rate=0.1), device="cpu")
        found.append(model.eval())
    return found


def test_networks_count_for_the_classes_that_they_find():
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(3).repeat(50)
    scores = []
    for known in ([0, 1], [1, 2]):
        own = 0.1 * torch.randn(150, 3, generator=generator)
        for label in known:
            own[:, label] += 6.0 * (truth == label)
        own[:, [label for label in range(3) if label not in known]] -= 4.0
        scores.append(own)
    weights = estimate_recall(scores, (0.5, 0.5))
    assert weights.sum(0).tolist() == pytest.approx([1.0] * 3)
    assert weights[0, 0] > 0.95
    assert weights[1, 2] > 0.95
    assert weights[0, 1] == pytest.approx(0.5, abs=0.02)
    shared = estimate_recall(scores, (0.8, 0.2))
    assert shared[0, 1] == pytest.approx(0.8, abs=0.02)


def test_information_is_that_of_confident_and_balanced_predictions():
    certain = 100.0 * torch.eye(4).repeat(5, 1)
    assert float(mutual_information(certain)) == pytest.approx(torch.tensor(4.0).log().item(), abs=1e-6)
    assert float(mutual_information(torch.ones(20, 4))) == pytest.approx(0.0, abs=1e-6)
    assert float(mutual_information(certain[:1].repeat(20, 1))) == pytest.approx(0.0, abs=1e-6)


def test_clients_that_never_saw_some_classes_teach_more_where_they_count_as_far_as_they_find_them(data, clients):
    calibration, test = calibration_loader(data, 900), Loader(data.test, data.preprocessing, batch_size=500)
    plain = with_joint_head(renewed(clients, calibration), SHARES, calibration)
    recalled = with_joint_head(clients, SHARES, calibration, fit=HeadFit(recalled=True))
    accuracy = {
        name: evaluate_ensemble(head.networks, test, SHARES).accuracy
        for name, head in (("plain", plain), ("recalled", recalled))
    }
    assert recalled.information > plain.information
    assert accuracy["recalled"] > accuracy["plain"] + 0.02
    parents = Ensemble(clients, SHARES)
    chosen = prepare_teachers(parents, Teach(), calibration, calibration, learns=True)
    assert chosen.recalled
    assert not chosen.renewed
    asked = prepare_teachers(parents, Teach(head="recall"), calibration, calibration, learns=True)
    for one, other in zip(chosen.models, asked.models, strict=True):
        assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
    assert not prepare_teachers(parents, Teach(renorm="reset"), calibration, calibration, learns=True).recalled
    for asked_for in (Teach(head="always"), Teach(labelled=50)):
        found = prepare_teachers(parents, asked_for, calibration, calibration, learns=True)
        assert found.joint
        assert found.renewed
        assert not found.recalled


def test_heads_of_different_images_are_compared_where_the_head_tells_more_than_was_asked(data):
    parents, images = [load(path) for path in PARENTS], calibration_loader(data, 300)
    plain = with_joint_head(parents, (0.5, 0.5), images)
    less, more = (
        with_joint_head(parents, (0.5, 0.5), images, fit=HeadFit(compared_above=plain.information + margin))
        for margin in (0.01, -0.01)
    )
    assert plain.information == less.information == more.information
    assert plain.agreement == less.agreement == 1.0  # not looked at
    assert 0.5 < more.agreement < 1.0
    for own in (less, more):
        for one, other in zip(own.networks, plain.networks, strict=True):
            assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


def test_the_recipe_of_a_child_says_how_its_teachers_counted(data, clients):
    calibration = calibration_loader(data, 300)
    result = fuse(clients, Recipe.create(refit="ridge", calibration=300, refit_steps=0), calibration)
    assert result.recipe.teach.head == "recall"
    assert result.recipe.teach.renorm == "none"
    again = fuse(clients, result.recipe, calibration)
    for one, other in zip(result.child.state_dict().values(), again.child.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_parents_with_labels_of_their_own_cannot_count_so(data, clients):
    calibration = calibration_loader(data, 100)
    sets = LabelSets.create([range(10), range(1, 11), range(10), range(10)])
    with pytest.raises(RecipeError, match=r"teach.head recall is for parents with the same labels"):
        prepare_teachers(Ensemble(clients, SHARES, sets), Teach(head="recall"), calibration, calibration, learns=True)
