"""Studies of published protocols: parents differ as these say, and a study runs from end to end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from depfuse.io.checkpoint import read_checkpoint
from experiments.lib import study as runner
from experiments.lib.parents.families import Family
from experiments.lib.parents.protocols import Clients, Protocol, RandomClasses
from experiments.lib.study import Study
from experiments.studies import one_shot, seed_paper, zipit

DIGITS = "digits_resnet(width=0.5)"
BRIEF = {"epochs": 1, "batch_size": 64, "learning_rate": 0.1}
CPU = torch.device("cpu")


def tiny(of: Study, name: str) -> Study:
    """A study of one set of parents, trained for an epoch."""
    family = of.parents[name]
    training = replace(family.training, architecture=DIGITS, settings=BRIEF)
    return replace(of, parents={name: replace(family, training=training, images=100)})


def small(folder: Path, *more: str) -> list[str]:
    words = ["--csv", str(folder / "table.csv"), "--parents", str(folder), "--seeds", "0", "--threads", "1"]
    return [*words, "--limit-test", "100", *more]


def test_halves_of_the_classes_are_disjoint_and_differ_from_seed_to_seed(tmp_path: Path) -> None:
    protocol = RandomClasses("cifar_resnet20", "cifar100")
    halves = [protocol.labels(0, number) for number in (0, 1)]
    assert sorted(halves[0] + halves[1]) == list(range(100))
    assert [len(half) for half in halves] == [50, 50]
    assert protocol.labels(1, 0) != halves[0]
    for number in (0, 1):
        protocol.entry(3, number).check_network()
    assert not set(protocol.parents(0, 2, tmp_path).files) & set(protocol.parents(1, 2, tmp_path).files)


def test_clients_share_out_the_images_and_their_cards_tell_how_many_each_had(tmp_path: Path) -> None:
    protocol = Clients(DIGITS, "digits", BRIEF, count=5, alpha=0.1)
    named = protocol.parents(2, 2, tmp_path)
    assert len(named.files) == 5
    protocol.train(2, 3, named.paths[3], "digits", CPU)
    card = read_checkpoint(named.paths[3]).card
    assert card is not None
    assert card.recipe is not None
    assert {name: card.recipe[name] for name in ("number", "of", "alpha", "seed")} == {
        "number": 3, "of": 5, "alpha": 0.1, "seed": 2,
    }  # fmt: skip
    assert card.seeds == {"train": 203}


def test_parents_of_one_task_differ_by_their_seed_alone() -> None:
    entries = [Protocol(DIGITS, "digits", BRIEF).entry(0, number) for number in (0, 1)]
    assert entries[0].model_copy(update={"seed": 1}) == entries[1]


@pytest.mark.parametrize(
    ("of", "name", "steps", "shown"),
    [
        (
            zipit.STUDY,
            "zipit-digits",
            ["parent *", "heads*", "naive*", "matched, 1.33*"],
            ["| heads side by side | ", "| naive average, reset | "],
        ),
        (
            seed_paper.STUDY,
            "seed-digits-cutout",
            ["parent 2", "ensemble", "OT, weights"],
            ["| parent 2 | ", "| OT, weights | "],
        ),
        (
            one_shot.STUDY,
            "one-shot-digits-0.1",
            ["client 5", "ensemble by counts", "average by*", "matched by counts"],
            ["| client 5 | ", "| ensemble by counts | ", "| matched by counts | "],
        ),
    ],
)
def test_a_study_trains_its_parents_once_and_shows_them(
    of: Study, name: str, steps: list[str], shown: list[str], tmp_path: Path, capsys
) -> None:
    own = tiny(of, name)
    assert own.main(small(tmp_path, "--steps", *steps)) == 0
    text = capsys.readouterr().out
    table = pd.read_csv(tmp_path / "table.csv")
    assert table["refused"].isna().all()
    assert all(line in text for line in shown)
    wider = table[table["step"].str.contains("1.33")]
    assert wider["flops"].sub(1.33).abs().lt(0.05).all()
    ensembles = table[table["step"].str.startswith(("heads", "ensemble"))]
    assert set(ensembles["flops"].round(1)) == {5.0 if of is one_shot.STUDY else 2.0}
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    assert own.main(small(tmp_path, "--steps", *steps)) == 0
    assert capsys.readouterr().out == text
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")} == written


def test_parents_for_a_gpu_are_left_open_unless_they_are_asked_for(tmp_path: Path) -> None:
    of = zipit.STUDY
    options = of.parser().parse_args(["--parents", str(tmp_path)])
    opened = [name for name, family in of.parents.items() if runner._left_open(family, options)]
    assert opened == [name for name, family in of.parents.items() if family.gpu]
    text = of.show(of, pd.DataFrame({"set": [], "refused": []}), {})
    assert "- CIFAR-100, 50 + 50 classes, width 16: on a GPU, `--sets zipit-width16`" in text


def test_what_a_paper_says_stands_beside_ours() -> None:
    of = zipit.STUDY
    step = of.factors["network"]["matched"]
    row = {"set": "own-halves", "seed": "0", "settings": step.described, "step": "matched", "refused": ""}
    table = pd.DataFrame([{**row, "accuracy": 0.4, "flops": 1.0, "parameters": 1.0, "cpu_seconds": 12.0}])
    text = of.show(of, table, dict(of.factors))
    assert "| matched | 40.0 | 79.1 | 1.00 | 1.00 | 12 |" in text
    assert "| heads side by side |  | 87.4 |" in text


def test_each_part_of_a_training_recipe_is_changed_by_itself() -> None:
    for changed in (seed_paper.CHANGED, seed_paper.CHANGED_DIGITS):
        assert [len(part) for part in changed.values()] == [0, 1, 1, 1, 1, 2]  # a batch with its rate
    names = [family.training.parents(0, 2, Path()).files for family in seed_paper.STUDY.parents.values()]
    assert len({file for pair in names for file in pair}) == 2 * len(names)


def test_every_gpu_line_has_the_settings_of_its_training() -> None:
    for of in (zipit.STUDY, one_shot.STUDY, seed_paper.STUDY):
        for family in of.parents.values():
            if isinstance(family, Family) and family.gpu:
                family.training.entry(0, 1).check_network()
