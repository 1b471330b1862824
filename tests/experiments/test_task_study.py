"""The study of tasks: what is drawn for whom, scores with right values, and one task from end to end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from depfuse.networks.forward import run_network
from experiments.lib.tasks import scores
from experiments.lib.tasks.scenes import Draw
from experiments.lib.tasks.tasks import TASKS
from experiments.lib.tasks.trained import outputs_of, parents, samples_of_the_test
from experiments.studies import tasks as study


@pytest.mark.parametrize("name", TASKS)
def test_a_network_takes_what_is_drawn_and_its_outputs_are_scored(name: str) -> None:
    task = TASKS[name]
    inputs, target = task.draw(Draw(60, 0))
    again, other = task.draw(Draw(60, 0)), task.draw(Draw(60, 0, test=True))
    assert torch.equal(target, again[1])
    assert not torch.equal(other[1], target)
    torch.manual_seed(0)
    network = task.network().eval()
    outputs = run_network(network, inputs)
    assert torch.isfinite(task.loss(outputs, target))
    trivial = task.trivial(inputs, target, target)
    assert trivial.shape == outputs.shape
    for score in (task.score, task.second):
        assert score.of(outputs.detach(), target) == score.of(outputs.detach(), target)  # no NaN


def test_a_parent_of_other_knowledge_sees_nine_tenths_of_its_own() -> None:
    drawn = [TASKS["transformer"].draw(Draw(2000, 0, which=which))[1] for which in (None, 0, 1)]
    assert [float((labels < 5).float().mean()) for labels in drawn] == pytest.approx([0.5, 0.9, 0.1], abs=0.04)
    assert [len(labels.unique()) for labels in drawn] == [10, 10, 10]
    turned = [TASKS["regression-1"].draw(Draw(2000, 0, which=which))[1] for which in (0, 1)]
    assert [float((degrees < 0).float().mean()) for degrees in turned] == pytest.approx([0.9, 0.1], abs=0.04)
    present = TASKS["multilabel"].draw(Draw(2000, 0, which=1))[1].mean(0)
    assert float(present[3:].min()) > 3 * float(present[:3].max())


def test_scores_have_right_values() -> None:
    target = torch.tensor([0, 0, 1, 2])
    outputs = torch.eye(3)[torch.tensor([0, 1, 1, 2])]
    assert scores.ACCURACY.of(outputs, target) == pytest.approx(75)
    maps, labels = outputs.T.reshape(1, 3, 2, 2), target.reshape(1, 2, 2)
    assert scores.IOU.of(maps, labels) == pytest.approx(100 * (1 / 2 + 1 / 2 + 1) / 3)
    assert scores.DICE.of(maps, labels) == pytest.approx(100 * (2 / 3 + 2 / 3 + 1) / 3)
    logits, yes = torch.tensor([[2.0], [-1.0], [1.0], [-2.0]]), torch.tensor([[1.0], [0.0], [0.0], [0.0]])
    assert scores.LABEL_ACCURACY.of(logits, yes) == pytest.approx(75)
    assert scores.AUROC.of(logits, yes) == pytest.approx(100)
    numbers = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    assert scores.R2.of(numbers + 1, numbers) == pytest.approx(1 - 4 / 5)
    assert scores.R2.of(scores.mean_target(None, numbers, numbers), numbers) == pytest.approx(0)
    assert scores.PSNR.of(torch.full((1, 1, 8, 8), 0.1), torch.zeros(1, 1, 8, 8)) == pytest.approx(20)
    found = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    assert scores.MAP.of(found, torch.tensor([0, 0, 1, 1])) == pytest.approx(100)
    assert scores.MAP.of(found, torch.tensor([0, 1, 0, 1])) < 60


def test_a_task_is_measured_from_end_to_end_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    csv, folder = tmp_path / "tasks.csv", tmp_path / "parents"
    words = ["--tasks", "regression-1", "--seeds", "0", "--csv", str(csv), "--parents", str(folder), "--threads", "1"]
    words += ["--samples", "128"]
    assert study.MEASUREMENT.main(words) == 0
    shown = capsys.readouterr().out
    rows = pd.read_csv(csv, keep_default_na=False).set_index(["parents", "network"])["score"]
    assert set(rows.loc["same"].index) == set(study.COLUMNS) - {"distilled"}
    assert len(list(folder.iterdir())) == 4
    task = replace(TASKS["regression-1"], count=128)
    inputs, target = samples_of_the_test(task)
    first = parents(task, 0, folder, differ=False)[0]
    expected = task.score.of(outputs_of(first, inputs, len(target)), target)
    assert float(rows["same", "parent 1"]) == pytest.approx(expected)
    assert float(rows["same", "trivial"]) == pytest.approx(0, abs=0.02)
    assert f"regression-1: R2 | {expected:.3f}" in shown

    seconds = pd.read_csv(csv)["seconds"].tolist()
    assert study.MEASUREMENT.main(words) == 0
    assert capsys.readouterr().out == shown
    assert pd.read_csv(csv)["seconds"].tolist() == seconds, "what is measured is measured once"


def test_what_is_kept_is_relative_to_the_trivial_score_in_either_direction() -> None:
    def rows(**score: float) -> pd.DataFrame:
        return pd.DataFrame([{"seed": 0, "network": name.replace("_", " "), "score": s} for name, s in score.items()])

    accuracy = rows(parent_1=90, parent_2=80, trivial=50, refitted=88)
    assert study.kept(accuracy, "refitted") == pytest.approx([38 / 40])
    error = rows(parent_1=0.3, parent_2=0.2, trivial=1.0, refitted=0.3)
    assert study.kept(error, "refitted") == pytest.approx([0.7 / 0.8])
    assert study.kept(error, "merged") == []


def test_an_unknown_task_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert study.MEASUREMENT.main(["--tasks", "dreams"]) == 2
    assert "there is no task 'dreams': choose from binary" in capsys.readouterr().err


def test_every_output_is_of_its_network_alone() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 1))
    inputs = torch.rand(301, 2, 2)
    torch.testing.assert_close(outputs_of(network, inputs, 301), network(inputs).detach())
