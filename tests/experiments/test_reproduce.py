"""The published table and ours beside it: rows that stay open, the choice on held-out images, and resuming."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from experiments.lib.parents import zoo
from experiments.lib.parents.families import Family, sets
from experiments.lib.parents.sets import ZOO, ParentSet
from experiments.lib.study import Study
from experiments.studies import reproduce
from experiments.studies.reproduce import BEST, CANDIDATES, COLUMNS, STUDY

OPEN = "open: train with `python -m experiments run train_zoo no-seed0 no-seed1`"
ASKED = ("parents", "naive, reset", "OT, activations", BEST)


@pytest.fixture
def study() -> Study:
    """The study of one small pair, and one of full width that nobody has trained."""
    pair = ParentSet("ResNet18, nothing", ZOO, "cifar10", ("no-seed0", "no-seed1"))
    show = partial(reproduce.tables, published={"open": "92.16 / 91.80 of 94.99 / 94.76"})
    families = {"open": Family(pair.title, 2000, real=(pair,), fixed=True), **sets("digits")}
    return replace(STUDY, parents=families, show=show)


def test_a_small_run_gives_the_tables_and_is_not_done_twice(study, tmp_path: Path, capsys) -> None:
    path, plot = tmp_path / "table.csv", tmp_path / "plot.svg"
    words = ["--steps", *(f"{heading}: *" for heading in ASKED), "--images", "100", "--limit-test", "50"]
    words += ["--threads", "1", "--csv", str(path)]
    assert study.main(words) == 0
    shown = capsys.readouterr().out
    tables = [part.splitlines() for part in shown.split("\n\n")]
    assert [part[0] for part in tables[::2]] == [
        "**Per cent of the test images**", "**Per cent of held-out training images**", "**Seconds**", "**CPU seconds**",
    ]  # fmt: skip
    heads = " | ".join(ASKED)
    test, held_out, seconds, _ = tables[1::2]
    assert test[0] == f"| networks | {heads} | published: activations / weights of parents |"
    assert test[2] == f"| ResNet18, nothing | {OPEN} |  |  |  | 92.16 / 91.80 of 94.99 / 94.76 |"
    assert test[3].startswith("| digits pair 0 | ")
    assert held_out[0] == f"| networks | {heads} |"
    assert seconds[0] == f"| networks | naive, reset | OT, activations | {BEST} |"
    assert [len(part) for part in (test, held_out, seconds)] == [4, 3, 3]
    rows = pd.read_csv(path)
    assert len(rows) == 7
    candidates = rows[rows["step"].isin(CANDIDATES)].set_index("step")
    best = candidates["held_out_accuracy"].idxmax()
    chosen = f"{100 * candidates.loc[best, 'accuracy']:.2f} ({CANDIDATES[best]})"
    assert test[3].split(" | ")[4] == chosen
    assert held_out[2].split(" | ")[4].startswith(f"{100 * candidates['held_out_accuracy'].max():.2f} (")
    assert seconds[2].endswith(f" | {candidates['seconds'].sum():.1f} |")
    before = path.read_bytes()
    for more in ([], ["--tables-only", "--plot", str(plot)]):
        assert study.main([*words, *more]) == 0
        assert capsys.readouterr().out == shown
        assert path.read_bytes() == before
    assert plot.read_text().startswith("<?xml")


def test_the_best_is_chosen_on_held_out_images_and_among_all(study) -> None:
    figures = {
        "matched, reset": (0.9, 0.5), "matched softly, reset": (0.7, 0.8), "matched as searched, repair": (0.8, 0.6),
    }  # fmt: skip
    steps = {name: study.factors[BEST][name] for name in figures}
    table = pd.DataFrame(
        [
            {
                "set": "digits", "step": name, "settings": steps[name].described, "accuracy": test, "seconds": 1.0,
                "held_out_accuracy": held_out, "cpu_seconds": 2.0, "refused": "",
            }
            for name, (test, held_out) in figures.items()
        ]
    )  # fmt: skip
    own = replace(study, parents=sets("digits"))
    text = reproduce.tables(own, table, {BEST: steps})
    assert "| digits pair 0 | 70.00 (sinkhorn 0.1) |" in text
    assert "| digits pair 0 | 80.00 (sinkhorn 0.1) |" in text
    assert "| digits pair 0 | 3.0 |" in text
    assert "| digits pair 0 | 6.0 |" in text
    assert "| digits pair 0 |  |" in reproduce.tables(own, table[:2], {BEST: steps})
    assert "| digits pair 0 |  |" in reproduce.tables(own, table, {BEST: dict(study.factors[BEST])})


def test_every_row_of_the_table_is_there() -> None:
    assert STUDY.factors.keys() == COLUMNS.keys()
    trained = zoo.read_zoo()
    for name, family in STUDY.parents.items():
        pair = family.real[0]
        assert pair.architecture is not None or all(file in trained for file in pair.files), name
        assert len(pair.files) == 2
