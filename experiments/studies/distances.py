"""Distances between channels over all real pairs: a default that does not depend on the pair it was chosen on.

    python -m experiments run distances --threads 1

Half an hour; one thread. All pairs of five ResNet20s that other people trained on CIFAR-10, two ResNet56s, the ResNet18
of width 16 and the ResNet20 of CIFAR-100 in `checkpoints/`, and the five pairs of digits; children are matched by
activations, averaged, and their BatchNorm is reset. `best` lets the calibration images of each pair decide. A distance
is chosen by the disagreement with the parents' ensemble on unlabelled training images, of all pairs but the one that it
is then used on.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from experiments.lib.layouts import draw_by_factor
from experiments.lib.measure import JUDGED
from experiments.lib.parents.families import families, sets
from experiments.lib.steps import Fusion, Step
from experiments.lib.study import Chosen, Study
from experiments.lib.tables import Estimate, markdown

PLAIN = "pearson"
FACTOR = "distance"
SOFT = {"solver": "sinkhorn", "regularisation": 0.1}
DISTANCES: dict[str, Step] = {
    name: Fusion({"distance": name}) for name in ("best", PLAIN, "cosine", "cosine-pearson", "scaled", "euclidean")
} | {f"{name}, sinkhorn 0.1": Fusion({"distance": name, **SOFT}) for name in ("best", PLAIN, "scaled")}


def show(study: Study, rows: pd.DataFrame, _: Chosen) -> str:
    """Two tables: the children of each distance, and what is chosen where one pair is left out."""
    described = {step.described: name for name, step in DISTANCES.items()}
    named = rows.assign(distance=rows["settings"].map(described), pair=rows["set"] + " " + rows["seed"])
    accuracy = named.pivot_table(index="pair", columns="distance", values="accuracy", sort=False).dropna()
    judged = named.pivot_table(index="pair", columns="distance", values="judged", sort=False).loc[accuracy.index]
    of = {name: [pair for pair in accuracy.index if pair.split()[0] == name] for name in study.parents}
    kinds = {study.parents[name].title: pairs for name, pairs in of.items() if pairs}
    names = [name for name in DISTANCES if name in accuracy]
    return "\n\n".join([_all(accuracy, names, kinds), _left_out(accuracy, judged, names, kinds)])


def _all(accuracy: pd.DataFrame, names: Sequence[str], kinds: dict[str, list[str]]) -> str:
    headers = ["distance", *(f"{title} ({len(pairs)})" for title, pairs in kinds.items()), "worst against pearson"]
    lines = []
    for name in names:
        cells = [_cell(accuracy.loc[pairs, name]) for pairs in kinds.values()]
        lines.append([name, *cells, f"{100 * (accuracy[name] - accuracy[PLAIN]).min():+.1f}"])
    return f"Test accuracy, the mean of the pairs and in brackets that of the worst.\n\n{markdown(headers, lines)}"


def _left_out(accuracy: pd.DataFrame, judged: pd.DataFrame, names: Sequence[str], kinds: dict[str, list[str]]) -> str:
    lines = []
    for title, pairs in kinds.items():
        if len(pairs) < 2:
            continue
        found = {pair: str(judged.loc[[p for p in pairs if p != pair], names].mean().idxmin()) for pair in pairs}
        chosen = ", ".join(f"{name} ({list(found.values()).count(name)})" for name in dict.fromkeys(found.values()))
        got = accuracy.index.to_series()[pairs].map(lambda pair, of=found: accuracy.loc[pair, of[pair]])
        plain = Estimate.of((got - accuracy.loc[pairs, PLAIN]).tolist())
        lines.append([title, chosen, _cell(got), "" if plain is None else plain.text(100)])
    text = markdown(["pairs", "chosen on the others (times)", "accuracy", "against pearson"], lines)
    return f"Chosen on all pairs but one, and used on that one.\n\n{text}"


def _cell(values: pd.Series[float]) -> str:
    found = Estimate.of(values.tolist())
    if found is None:
        return ""
    return found.text(100) + (f" ({100 * values.min():.1f})" if len(values) > 1 else "")


STUDY = Study(
    "distances",
    __doc__,
    families("resnet20-pairs")
    | sets("resnet56-3-5", "cifar10-resnet18-width16", "cifar100")
    | families("digits-shipped"),
    {FACTOR: DISTANCES},
    show,
    draw_by_factor,
    JUDGED,
)
