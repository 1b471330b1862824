"""The study of self-training: which cells it has, and what its table says."""

from __future__ import annotations

import itertools

import pandas as pd
import pytest

from depfuse.errors import RecipeError
from experiments.studies import self_training as study


def test_cells_come_seed_by_seed_so_that_a_child_is_refitted_once() -> None:
    options = study.MEASUREMENT.parser().parse_args(["--seeds", "0,1", "--images", "5000", "--passes", "4"])
    cells = study.wanted(options)
    assert len(cells) == 2 * len(study.SETS) * len(study.NETWORKS)
    of_a_child = [(cell["set"], cell["seed"]) for cell in cells]
    changes = sum(one != other for one, other in itertools.pairwise(of_a_child))
    assert changes == len(set(of_a_child)) - 1
    for wrong in (["--sets", "thirds"], ["--networks", "child"], ["--passes", "0"]):
        with pytest.raises(RecipeError):
            study.wanted(study.MEASUREMENT.parser().parse_args(wrong))


def test_the_table_has_accuracy_with_that_of_mirror_images_and_what_was_not_kept() -> None:
    rows = [
        {"set": name, "network": network, "seed": seed, "images": 5000, "passes": 4, "test_limit": 0,
         "accuracy": 0.8, "mirrored": 0.82, "kept": kept, "seconds": 30.0}
        for name, seed, network, kept in [
            ("own-halves", 0, "self-trained", 1.0),
            ("own-halves", 1, "self-trained", 0.0),
            ("halves", 0, "beside", float("nan")),
        ]
    ]  # fmt: skip
    text = study.show(pd.DataFrame(rows), study.MEASUREMENT.parser().parse_args([]))
    assert "## 5,000 unlabelled images, 4 passes" in text
    assert "| network | own halves (seeds: 2) | halves (seeds: 1) | seconds |" in text
    assert "| child, self-trained | 80.0 ± 0.0 (82.0 ± 0.0), 1 not kept |  | 30 |" in text
    assert "| heads side by side (two networks) |  | 80.0 (82.0) | 30 |" in text
