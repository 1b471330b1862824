"""The published example of fusion by graph matching: two networks for MNIST, fused at eleven shares.

    python -m experiments run published_example --threads 2

At most a few seconds a matching; two threads. Published (pygmtools' example on model fusion, Liu et al. 2022) with the
affinity matrix of all 139 channels written out (19,321 x 19,321), in 13 to 30 minutes.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from experiments.lib.layouts import TEST, draw_by_factor
from experiments.lib.parents.families import sets
from experiments.lib.steps import Fusion
from experiments.lib.study import Chosen, Study
from experiments.lib.tables import markdown

# Per cent of MNIST's test images at alpha, the share of network 2, of 0, 0.1, ... 1.
PUBLISHED = (84.18, 85.12, 85.21, 82.52, 71.11, 53.74, 63.26, 78.51, 82.81, 83.97, 83.81)
ALPHAS = tuple(step / 10 for step in range(11))
WEIGHTS = {"criterion": "weights"}
SETTINGS: dict[str, dict[str, Any]] = {
    **{
        solver: {**WEIGHTS, "solver": solver}
        for solver in ("spectral", "reweighted-random-walk", "ipfp", "frank-wolfe", "coordinate-descent")
    },
    "emd": {},
    "emd, before the non-linearity": {"taps": "before"},
    "emd, both": {"taps": "both"},
    "coordinate-descent, mixture": {
        "criterion": "mixture", "mixture": 0.7, "solver": "coordinate-descent", "start": "activations",
    },
}  # fmt: skip


def table_of(study: Study, table: pd.DataFrame, chosen: Chosen) -> str:
    """Solvers as rows and shares as columns, with the seconds of matching and what is at or above the published."""
    known = {row["settings"]: row for row in table.to_dict("records")}
    heads = ["alpha", *(f"{alpha:g}" for alpha in ALPHAS), "seconds", "at or above published"]
    lines = [["published", *(f"{value:.2f}" for value in PUBLISHED), "793 and 1836", ""]]
    for solver, steps in chosen.items():
        own = {float(alpha): known[step.described] for alpha, step in steps.items() if step.described in known}
        found = {alpha: 100 * row["accuracy"] for alpha, row in own.items()}
        above = sum(found.get(alpha, 0.0) >= least - 1e-6 for alpha, least in zip(ALPHAS, PUBLISHED, strict=True))
        seconds = sum(row["seconds_align"] for row in own.values()) / max(1, len(own))
        cells = [f"{found[alpha]:.2f}" if alpha in found else "" for alpha in ALPHAS]
        lines.append([solver, *cells, f"{seconds:.2f}", f"{above} of {len(PUBLISHED)}"])
    return markdown(heads, lines)


STUDY = Study(
    "published_example",
    __doc__,
    sets("simplenet"),
    {
        solver: {f"{alpha:g}": Fusion({**settings, "weights": (round(1 - alpha, 9), alpha)}) for alpha in ALPHAS}
        for solver, settings in SETTINGS.items()
    },
    table_of,
    draw_by_factor,
    columns=TEST,
)
