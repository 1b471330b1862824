"""The best child: a family of candidates, judged without labels on images that none of them saw."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from digits_parents import digits_parents, small_files, small_parents
from torch import nn

from depfuse import Recipe, fuse
from depfuse.cli import main
from depfuse.data import DataSet, calibration_loader, load_data
from depfuse.data.augment import mix
from depfuse.data.augmentation import Augmentation
from depfuse.ensemble.distance import SCALES
from depfuse.errors import DepfuseWarning, RecipeError
from depfuse.fusion.calibration import CANDIDATES_SHARE
from depfuse.fusion.candidates import best_of
from depfuse.fusion.parents import Parents

BEST = Recipe(goal="best", refit_steps=2, distance="scaled", joint_head="none", parents_renorm="none")
IMAGES = 320


@pytest.fixture(scope="module")
def data() -> DataSet:
    return load_data("digits")


@pytest.fixture(scope="module")
def result(data):
    return fuse(digits_parents(*"ab"), BEST, calibration_loader(data, IMAGES))


def test_the_child_is_the_candidate_that_agrees_best(result, data):
    names = [candidate.name for candidate in result.family]
    assert names[:4] == ["parent 1", "parent 1, head refitted", "parent 2", "parent 2, head refitted"]
    assert "average" in names
    assert any(name.endswith("merged from stage 2 on") for name in names)
    assert names[-1].endswith("polished")
    assert result.child is best_of(result.family).network
    least = min(result.family, key=lambda candidate: candidate.disagreement)
    for candidate in result.family[: result.family.index(result.best)]:
        differences = candidate.losses - least.losses
        assert float(differences.mean()) > float(differences.std()) / len(differences) ** 0.5
    assert all(float(candidate.losses.mean()) == pytest.approx(candidate.disagreement) for candidate in result.family)
    assert all(candidate.seconds >= 0 for candidate in result.family)


def test_disagreement_is_measured_from_afar_and_the_scale_between_images(result, data):
    loader = calibration_loader(data, IMAGES)
    held = round(CANDIDATES_SHARE * IMAGES)
    rest, near = loader.between(IMAGES - held, IMAGES), Augmentation.suited_to(loader.image_shape)
    views = [rest.augmented(Augmentation(translate=2 * near.translate), view) for view in range(4)]
    images = torch.cat([inputs for view in views for inputs, _ in view])
    plain = torch.cat([inputs for inputs, _ in rest])
    generator = torch.Generator().manual_seed(0)
    mixed = torch.cat([mix(inputs, generator) for inputs, _ in rest.augmented(near, 0)])
    parents = digits_parents(*"ab")
    with torch.no_grad():
        wanted, between = (
            torch.stack([parent(inputs).softmax(1) for parent in parents]).mean(0) for inputs in (plain, mixed)
        )
        for candidate in result.family:
            scores = candidate.network(images) / candidate.scale
            losses = [-(wanted.repeat(4, 1) * (scale * scores).log_softmax(1)).sum(1).mean() for scale in SCALES]
            assert float(min(losses)) == pytest.approx(candidate.disagreement, rel=1e-4)
            scores = candidate.network(mixed)
            loss = -float((between * scores.log_softmax(1)).sum(1).mean())
            for factor in (2**-0.5, 2**0.5):
                other = -float((between * (factor * scores).log_softmax(1)).sum(1).mean())
                assert other > loss or candidate.scale in (SCALES[0], SCALES[-1])


def test_a_scale_changes_no_decision(result, data):
    images = data.example(200)
    with torch.no_grad():
        for candidate, parent in zip(result.family[::2], digits_parents(*"ab"), strict=False):
            scores = parent(images)
            assert torch.equal(candidate.network(images).argmax(1), scores.argmax(1))
            torch.testing.assert_close(candidate.network(images), candidate.scale * scores, atol=1e-4, rtol=1e-4)


def test_parents_of_different_knowledge_are_merged(result):
    parents = [candidate for candidate in result.family if candidate.name in ("parent 1", "parent 2")]
    assert result.best.disagreement < min(parent.disagreement for parent in parents)
    assert result.best.name.startswith(("average", "parent 1, merged", "parent 2, merged"))


def test_parents_with_one_head_are_candidates_as_they_were_given(data):
    given = digits_parents(*"ab")
    recipe = BEST.changed(joint_head="auto", parents_renorm="auto")
    found = fuse(given, recipe, calibration_loader(data, 200))
    assert found.joint
    assert [candidate.name for candidate in found.family][:2] == ["parent 1", "parent 1, head refitted"]
    images = data.example(50)
    alone = found.family[0]
    with torch.no_grad():
        torch.testing.assert_close(alone.network(images), alone.scale * given[0](images), atol=1e-4, rtol=1e-4)
    assert not found.best.name.startswith("parent")


def test_the_last_candidates_begin_from_the_best_before_them(result):
    polished = result.family[-1]
    rest = best_of(result.family[:-1])
    assert polished.name == f"{rest.name}, polished"
    merged = [candidate for candidate in result.family if candidate.name.endswith("all images and layers")]
    assert len(merged) == 1


def test_one_parent_twice_is_that_parent(data):
    parent = small_parents()[0]
    found = fuse([parent, copy.deepcopy(parent)], BEST, calibration_loader(data, 100))
    images = data.example(100)
    with torch.no_grad():
        assert float((found.child(images).argmax(1) == parent(images).argmax(1)).double().mean()) >= 0.97


def test_no_label_is_read(data):
    loaders = [calibration_loader(data, 80) for _ in range(2)]
    loaders[1].labels.zero_()
    first, second = (fuse(small_parents(), BEST, loader) for loader in loaders)
    for one, two in zip(first.family, second.family, strict=True):
        assert one.disagreement == two.disagreement


class Unfollowed(nn.Module):
    """A network whose path depends on values, so that it cannot be taken apart."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(64, 12), nn.BatchNorm1d(12), nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.first(x.flatten(1))).relu()
        return self.head(x) if float(x.sum()) >= 0 else self.head(-x)


def test_networks_that_cannot_be_refitted_still_have_a_best(data):
    torch.manual_seed(0)
    with pytest.warns(DepfuseWarning, match="stays fixed"):
        found = fuse(
            [Unfollowed().eval(), Unfollowed().eval()],
            BEST.changed({"align.allow_fixed": True}),
            calibration_loader(data, 100),
        )
    assert [candidate.name for candidate in found.family][:2] == ["parent 1", "parent 2"]
    assert found.best is not None


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"refit": "regmean"}, "goal best refits its candidates by ridge"),
        ({"solver": "sinkhorn"}, "goal best needs couplings that are permutations"),
        ({"keep_worst": 0.2}, "goal best is of the parents' width"),
    ],
)
def test_contradictions_get_one_sentence(settings, sentence):
    with pytest.raises(RecipeError, match=sentence):
        Recipe.create(goal="best", **settings)


def test_images_are_needed(data):
    with pytest.raises(RecipeError, match="goal best needs calibration images"):
        fuse(Parents(small_parents(), example=data.example()), BEST.changed(criterion="weights"))
    with pytest.raises(RecipeError, match="at least 8 calibration images, not 5"):
        fuse(small_parents(), BEST, calibration_loader(data, 5))


def test_on_the_command_line(tmp_path: Path, capsys):
    out, report, plot = (tmp_path / name for name in ("child.safetensors", "report.json", "family.png"))
    arguments = ["--data", "digits", "--calibration", "200", "--refit-steps", "2", "--distance", "scaled"]
    files = ["--out", str(out), "--report", str(report), "--plot", str(plot)]
    assert main(["fuse", *small_files(), *arguments, "--goal", "best", *files]) == 0
    found = json.loads(report.read_text())
    rows = found["family"]
    chosen = [row for row in rows if row["chosen"]]
    assert len(chosen) == 1
    assert chosen[0]["accuracy"] == found["child"]["accuracy"]
    assert chosen[0]["name"] in found["verdict"]
    assert {row["name"] for row in rows} >= {"parent 1", "parent 2, head refitted", "average"}
    assert found["seconds"]["best"] > 0
    assert plot.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert all(row["name"] in printed for row in rows)
    assert found["child"]["accuracy"] >= max(parent["accuracy"] for parent in found["parents"]) - 0.01


def test_a_parent_that_is_best_goes_half_way_to_the_ensemble(data):
    given = digits_parents("same-a", "same-b")
    loader = calibration_loader(data, 400)
    recipe = BEST.changed(refit_steps=40)
    found = fuse(given, recipe, loader)
    origin, last = best_of(found.family[:-1]), found.family[-1]
    assert origin.name.startswith("parent")
    assert last.name == f"{origin.name}, all layers half-way"
    assert last.instead_of == origin.name
    assert found.best is last
    assert last.scale == origin.scale
    # Nearer to the ensemble between images that neither it nor its teachers have seen.
    fresh = torch.cat([inputs for inputs, _ in calibration_loader(data, 1200, seed=1)])
    mixed = mix(fresh, torch.Generator().manual_seed(5))
    with torch.no_grad():
        wanted = torch.stack([parent(mixed).softmax(1) for parent in given]).mean(0)
        losses = [
            -float((wanted * (one.network(mixed) / one.scale).log_softmax(1)).sum(1).mean()) for one in (last, origin)
        ]
    assert losses[0] < losses[1]


def test_a_candidate_takes_the_place_of_its_origin_only(result):
    first, second = result.family[0], result.family[2]
    best = best_of([first, second])
    other = second if best is first else first
    for origin, kept in ((best, True), (other, False)):
        heir = replace(origin, name="heir", losses=origin.losses + 1, instead_of=origin.name)
        assert (best_of([first, second, heir]) is heir) is kept
