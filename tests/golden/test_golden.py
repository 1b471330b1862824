"""Children are what they were: byte for byte on a known kind of machine, up to rounding on others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from .cases import FAST, FUSIONS, NAMES
from .compute import IMAGES, VALUES, compute, deviations, differences, distance, merged, read, records_file
from .machine import kind
from .product import choices, digits
from .record import Outcome, state_digest

RENEW = "If that is meant: python -m tests.golden --write"


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in NAMES])
def test_nothing_has_changed(name: str) -> None:
    record, outcome = read(records_file()).get(name), compute(name)
    found = deviations(outcome, read(VALUES)[name]) if record is None else differences(outcome, record)
    assert found == [], f"{name}: {'; '.join(found)}. {RENEW}"


def test_every_case_is_stored() -> None:
    """What another kind of machine has made stale is compared by values, until records are taken on that kind again."""
    assert sorted(read(VALUES)) == sorted(NAMES), RENEW
    files = list(records_file().parent.glob("*.json"))
    assert len(files) >= 2
    for file in files:
        assert set(read(file)) <= set(NAMES), f"{file.name}. {RENEW}"
        assert len(read(file)) > 0.8 * len(NAMES), f"{file.name} is of another time. {RENEW}"
    assert set(FAST) <= set(NAMES)


@pytest.mark.parametrize("setting", ["solver", "renorm", "criterion", "refit", "distance", "taps", "goal"])
def test_every_choice_has_a_case(setting: str) -> None:
    known = {
        **choices(),
        "criterion": {"activations", "weights", "mixture"},
        "refit": {"none", "ridge", "regmean", "least-squares"},
        "distance": {"cosine", "pearson", "scaled", "euclidean"},
        "taps": {"before", "both"},
        "goal": {"best"},
    }
    taken = {case.settings.get(setting) for case in FUSIONS.values()}
    defaults = {"solver": "emd", "renorm": "auto", "criterion": "activations"}
    assert known[setting] <= taken | {defaults.get(setting)}


def test_no_two_recipes_have_one_child() -> None:
    """A setting that changes nothing covers nothing."""
    for file in records_file().parent.glob("*.json"):
        children = {name: record["child"] for name, record in read(file).items() if name in FUSIONS}
        names: dict[str, list[str]] = {}
        for name, child in children.items():
            names.setdefault(child, []).append(name)
        assert [same for same in names.values() if len(same) > 1] == []


def test_a_digest_notices_the_last_bit_of_one_number() -> None:
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    before = state_digest(network.state_dict())
    assert state_digest(network.state_dict()) == before
    with torch.no_grad():
        network.weight[1, 2] = torch.nextafter(network.weight[1, 2], torch.tensor(9.0))
    assert state_digest(network.state_dict()) != before


def test_values_of_kinds_that_differ_little_are_compared_closely_and_others_by_accuracy() -> None:
    def outcome(outputs: float, accuracy: float = 0.9, chosen: str = "a", code: int = 0) -> Outcome:
        return Outcome([code], {}, [[outputs, 1.0]], accuracy, chosen)

    stored = merged([outcome(0.5).values, outcome(0.500001).values])
    assert stored["within"] == 1e-4
    assert distance([[0.5, 2.0]], [[0.6, 2.0]]) == pytest.approx(0.05)
    assert deviations(outcome(0.50002), stored) == []
    assert len(deviations(outcome(0.51), stored)) == 1
    assert len(deviations(outcome(0.5, chosen="b"), stored)) == 1
    tied = merged([Outcome([], {}, [[0.5, 1.0]], 0.9, "a").values] * 2)
    assert deviations(Outcome([], {}, [[0.5, 1.0]], 0.9, "b"), tied) == []
    assert len(deviations(Outcome([], {}, [[0.7, 1.0]], 0.9, "b"), tied)) == 2
    assert len(deviations(outcome(0.5, code=2), stored)) == 1
    flipped = merged([outcome(0.5).values, outcome(0.7, chosen="b").values])
    assert (flipped["within"], flipped["chosen"]) == (None, None)
    assert deviations(outcome(0.9, accuracy=0.86, chosen="c"), flipped) == []
    assert len(deviations(outcome(0.5, accuracy=0.83), flipped)) == 1


def test_accuracies_are_of_so_many_images() -> None:
    assert len(digits().test.images) == IMAGES


def test_a_kind_names_a_file() -> None:
    assert kind() == kind()
    assert records_file("some-kind").name == "some-kind.json"
    assert not set(kind()) & set('/\\: "')
