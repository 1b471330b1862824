"""Distances between channels over all real pairs: a default that does not depend on the pair it was chosen on.

    python -m experiments run distances --threads 1

Half an hour on one thread (`--sets digits-shipped`: a minute). All pairs of five ResNet20s that other people trained on
CIFAR-10, two ResNet56s, the ResNet18 of width 16 and the ResNet20 of CIFAR-100 in `checkpoints/`, and the five pairs of
digits; children are matched by activations, averaged, and their BatchNorm is reset. `best` lets the calibration images
of each pair decide. A distance is chosen by the disagreement with the parents' ensemble on unlabelled training images,
of all pairs but the one that it is then used on.

Soft couplings average channels, which leaves less of the second parent's weights: at equal shares the child leans on
the first parent. They stand beside permutations merged at unequal shares that lean as far, and nothing is chosen among
children that lean: the one that leans most is the first parent itself, and would always be.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from experiments.lib.layouts import draw_by_factor
from experiments.lib.measure import JUDGED, SECOND
from experiments.lib.parents.families import families, sets
from experiments.lib.steps import Fusion, Step
from experiments.lib.study import Chosen, Study
from experiments.lib.tables import Estimate, markdown

PLAIN = "pearson"
FACTOR = "distance"
EVEN: dict[str, Step] = {
    name: Fusion({"distance": name}) for name in ("best", PLAIN, "cosine", "cosine-pearson", "scaled", "euclidean")
}
SOFT = {"solver": "sinkhorn", "regularisation": 0.1}
LEANING: dict[str, Step] = {
    f"{PLAIN}, sinkhorn 0.1": Fusion({"distance": PLAIN, **SOFT}),
    f"{PLAIN}, shares 0.6 : 0.4": Fusion({"distance": PLAIN, "weights": (0.6, 0.4)}),
    f"{PLAIN}, sinkhorn 0.1, shares 0.42 : 0.58": Fusion({"distance": PLAIN, **SOFT, "weights": (0.42, 0.58)}),
}
DISTANCES = EVEN | LEANING


def show(study: Study, rows: pd.DataFrame, _: Chosen) -> str:
    """Three tables: the children of each distance, what is chosen with one pair left out, and children that lean."""
    described = {step.described: name for name, step in DISTANCES.items()}
    named = rows.assign(distance=rows["settings"].map(described), pair=rows["set"] + " " + rows["seed"])
    of = {name: [pair for pair in dict.fromkeys(named["pair"]) if pair.split()[0] == name] for name in study.parents}
    kinds = {study.parents[name].title: pairs for name, pairs in of.items() if pairs}
    even = _whole(named, EVEN, kinds)
    parts = [_all(*even), _left_out(named, *even)]
    if named["distance"].isin(LEANING).any():
        parts.append(_leaning(named, *_whole(named, [PLAIN, *LEANING], kinds)))
    return "\n\n".join(parts)


def _whole(
    named: pd.DataFrame, names: Iterable[str], kinds: Mapping[str, Sequence[str]]
) -> tuple[pd.DataFrame, dict[str, list[str]]]:
    """Return the accuracies of the pairs that have all of some matchings that any pair has, and these by their kind."""
    rows = named[named["distance"].isin(list(names))]
    accuracy = rows.pivot_table(index="pair", columns="distance", values="accuracy", sort=False).dropna()
    accuracy = accuracy[[name for name in names if name in accuracy]]
    there = {title: [pair for pair in pairs if pair in accuracy.index] for title, pairs in kinds.items()}
    return accuracy, {title: pairs for title, pairs in there.items() if pairs}


def _all(accuracy: pd.DataFrame, kinds: Mapping[str, Sequence[str]]) -> str:
    headers = ["distance", *(f"{title} ({len(pairs)})" for title, pairs in kinds.items()), "worst against pearson"]
    lines = []
    for name in accuracy:
        cells = [_cell(accuracy.loc[pairs, name]) for pairs in kinds.values()]
        lines.append([name, *cells, f"{100 * (accuracy[name] - accuracy[PLAIN]).min():+.1f}"])
    return f"Test accuracy, the mean of the pairs and in brackets that of the worst.\n\n{markdown(headers, lines)}"


def _left_out(named: pd.DataFrame, accuracy: pd.DataFrame, kinds: Mapping[str, Sequence[str]]) -> str:
    judged = named.pivot_table(index="pair", columns="distance", values="judged", sort=False)[accuracy.columns]
    lines = []
    for title, pairs in kinds.items():
        if len(pairs) < 2:
            continue
        found = {pair: str(judged.loc[[p for p in pairs if p != pair]].mean().idxmin()) for pair in pairs}
        chosen = ", ".join(f"{name} ({list(found.values()).count(name)})" for name in dict.fromkeys(found.values()))
        got = pd.Series({pair: float(accuracy.loc[pair, name]) for pair, name in found.items()})
        plain = Estimate.of((got - accuracy.loc[pairs, PLAIN]).tolist())
        lines.append([title, chosen, _cell(got), "" if plain is None else plain.text(100)])
    text = markdown(["pairs", "chosen on the others (times)", "accuracy", "against pearson"], lines)
    return f"Chosen on all pairs but one, and used on that one.\n\n{text}"


def _leaning(named: pd.DataFrame, accuracy: pd.DataFrame, kinds: Mapping[str, Sequence[str]]) -> str:
    shares = named.pivot_table(index="pair", columns="distance", values="second_share", sort=False, dropna=False)
    headers = ["matching", *(f"{title} ({len(pairs)}){of}" for title, pairs in kinds.items() for of in ("", ": share"))]
    lines = []
    for name in accuracy:
        cells = [(_cell(accuracy.loc[pairs, name]), Estimate.of(shares.loc[pairs, name].tolist()))
                 for pairs in kinds.values()]  # fmt: skip
        lines.append(
            [name, *(text for got, share in cells for text in (got, "" if share is None else share.text(100)))]
        )
    return (
        "Children that lean on the first parent, and the share of the second one that is left of its matched kernels: "
        f"soft couplings against permutations at unequal shares.\n\n{markdown(headers, lines)}"
    )


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
    (*JUDGED, *SECOND),
)
