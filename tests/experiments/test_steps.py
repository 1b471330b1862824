"""What is measured of a cell: sizes, images that nothing else sees, and parents of different labels over all labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from depfuse import Recipe
from depfuse.data import Loader, calibration_loader, load_data
from depfuse.errors import RecipeError
from depfuse.evaluate import evaluate, evaluate_with_ensemble
from depfuse.fusion.parents import Parents
from depfuse.fusion.pipeline import fuse
from depfuse.io.cards import Card
from depfuse.io.checkpoint import state_digest, write_checkpoint
from depfuse.models import build_network
from experiments.lib.material import Joint, Material, read_material, teachers
from experiments.lib.measure import AGREEMENT, ALWAYS, JUDGED, Setup, measure
from experiments.lib.parents.families import Family, sets
from experiments.lib.parents.sets import SETS, ParentSet
from experiments.lib.places import CHECKPOINTS
from experiments.lib.size import keep_worst_for, parameters
from experiments.lib.steps import Fusion
from experiments.studies.ablate_child import STEPS


def digits() -> Material:
    return read_material(SETS["digits"], "digits", torch.device("cpu"))


def measured(step: str, *, images: int = 100, limit: int = 100, family: Family | None = None) -> dict[str, Any]:
    own = STEPS[step]
    parents = {"set": family or sets("digits")["digits"]}
    setup = Setup(parents, {own.described: own}, (*ALWAYS, *AGREEMENT), {"digits": "digits"}, Path(), "cpu")
    cell = {"set": "set", "settings": own.described, "seed": 0, "test_limit": limit}
    return measure(setup, {**cell, "images": images if own.images else 0})


def test_a_child_of_so_many_times_the_parameters() -> None:
    found = measured("1.2 times the parameters, reset")
    assert found["parameters"] == pytest.approx(1.2, abs=0.02)
    assert found["note"].startswith("keep_worst 0.")
    of = digits()
    example = of.inputs.data.example()
    for share in (0.1, 0.5):
        recipe = Recipe(keep_worst=share, criterion="weights", renorm="none")
        child = fuse(Parents(of.inputs.models, groups=of.groups, example=example), recipe).child
        times = parameters(child) / parameters(of.inputs.models[0])
        again = keep_worst_for(times, of.inputs.models, of.groups, example)
        assert [round(again * g.size) for g in of.groups.free] == [round(share * g.size) for g in of.groups.free]
    with pytest.raises(RecipeError, match=r"1 to 3.* times the parameters, not 9 times"):
        keep_worst_for(9.0, of.inputs.models, of.groups, example)


def test_the_same_matching_renormalised_otherwise_is_judged_by_itself() -> None:
    steps = {name: Fusion({"criterion": "weights"}, renorm=name) for name in ("", "reset", "none", "augmented")}
    described = {step.described: step for step in steps.values()}
    setup = Setup(sets("digits"), described, (*ALWAYS, *JUDGED), {"digits": "digits"}, Path(), "cpu")
    found = {}
    for name, step in steps.items():
        cell = {"set": "digits", "settings": step.described, "seed": 0, "test_limit": 0, "images": 100}
        found[name] = measure(setup, cell)
    assert found["reset"]["loss"] == found[""]["loss"]  # what the recipe does by itself
    assert len({own["loss"] for own in found.values()}) == 3
    assert len({own["judged"] for own in found.values()}) == 1
    assert found[""]["judged"] > 0


def test_what_is_measured_leaves_the_networks_that_are_kept_as_they_are() -> None:
    of = digits()
    before = [state_digest(model.state_dict()) for model in of.inputs.models]
    for step in (
        "naive average, reset", "best parent, head refitted", "ensemble, statistics renewed",
        "ensemble, one head without labels", "matched, reset",
    ):  # fmt: skip
        measured(step)
    assert digits() is of
    assert [state_digest(model.state_dict()) for model in of.inputs.models] == before


def test_networks_that_are_written_anew_are_read_anew(tmp_path: Path) -> None:
    for name in ("digits-a", "digits-b"):
        (tmp_path / f"{name}.safetensors").write_bytes((CHECKPOINTS / f"{name}.safetensors").read_bytes())
    parents = replace(SETS["digits"], folder=tmp_path)
    first = read_material(parents, "digits", torch.device("cpu"))
    assert read_material(parents, "digits", torch.device("cpu")) is first
    (tmp_path / "digits-a.safetensors").write_bytes((CHECKPOINTS / "digits-same-a.safetensors").read_bytes())
    again = read_material(parents, "digits", torch.device("cpu"))
    assert again.inputs.checkpoints[0].digest != first.inputs.checkpoints[0].digest
    assert again.inputs.checkpoints[1].digest == first.inputs.checkpoints[1].digest


def test_a_step_takes_long_by_any_name_of_its_settings() -> None:
    assert Fusion({"distil": 1}).long == Fusion({"train.distil": 1}).long == "--distil"
    assert Fusion({"train": {"finetune": 2}}).long == "--distil"
    assert Fusion({"choose": "groups"}).long == Fusion({"align.choose": "groups"}).long == "--by-group"
    assert Fusion().long == Fusion({"align.choose": "whole", "train.distil": 0}).long == ""


def test_held_out_images_are_no_calibration_images() -> None:
    of = digits()
    few, many = of.held_out(100, 3, 0), of.held_out(900, 3, 0)
    assert few is not None
    assert many is not None
    assert few.count == 1297 // 4
    assert of.held_out(100, 3, 20).count == of.test(20).count == 20  # type: ignore[union-attr]
    assert torch.equal(of.test(250).labels, of.test(0).labels[::2])
    assert torch.equal(few.images, many.images)
    assert of.held_out(1297, 3, 0) is None
    seen = {image.numpy().tobytes() for image in of.held_out(100, 4, 0).images}  # type: ignore[union-attr]
    assert not {image.numpy().tobytes() for image in calibration_loader(of.inputs.data, 900, seed=4).images} & seen
    assert not {image.numpy().tobytes() for image in of.without_held_out(100, 4).train.images} & seen
    assert len(of.without_held_out(100, 4).train) == 1297 - 1297 // 4
    assert len(of.without_held_out(1297, 4).train) == 1297


def test_a_fold_takes_the_place_of_the_test_images() -> None:
    parents = replace(SETS["digits"], fold=2)
    data = read_material(parents, "digits", torch.device("cpu")).inputs.data
    whole = load_data("digits")
    assert len(data.train) + len(data.test) == len(whole.train)
    assert len(data.test) == pytest.approx(len(whole.train) / 5, abs=10)
    held = {image.numpy().tobytes() for image in data.test.images}
    assert held <= {image.numpy().tobytes() for image in whole.train.images}


def test_parents_of_different_labels_are_measured_over_all_labels(tmp_path: Path) -> None:
    data, architecture = load_data("digits"), "digits_resnet(width=0.5, classes=5)"
    parents = []
    for number, classes in enumerate([(0, 1, 2, 3, 4), (5, 6, 7, 8, 9)]):
        torch.manual_seed(number)
        parents.append(build_network(architecture).eval())
        card = Card(architecture=architecture, data="digits", preprocessing=data.preprocessing, classes=classes)
        write_checkpoint(tmp_path / f"{number}.safetensors", parents[-1].state_dict(), card)
    halves = ParentSet("halves", "k", "digits", ("0", "1"), differ=True, folder=tmp_path)
    family = Family("halves", 100, real=(halves,), fixed=True)
    test = Loader(data.test, data.preprocessing, batch_size=500)
    of = read_material(halves, "digits", torch.device("cpu"))
    own, both = evaluate_with_ensemble(parents, test, sets=of.inputs.labels)
    assert measured("parent 2", limit=0, family=family)["accuracy"] == own[1].accuracy
    found = measured("ensemble", limit=0, family=family)
    assert (found["accuracy"], found["agreement"]) == (both.accuracy, 1.0)
    images = calibration_loader(of.inputs.data, 100, seed=0)
    head = Joint(teachers(of, images, Recipe(refit="ridge", joint_head="always")).models, of.shares)
    found = measured("ensemble, one head without labels", limit=0, family=family)
    assert found["accuracy"] == evaluate(head, test).accuracy
    for step in (
        "naive average, reset",
        "best parent, head refitted",
        "matched, reset",
        "1.5 times the parameters, reset",
    ):
        found = measured(step, family=family)
        assert 0.0 <= found["accuracy"] <= 1.0, step
        assert found["parameters"] == pytest.approx(1.5 if "1.5" in step else 1.0, abs=0.1), step
