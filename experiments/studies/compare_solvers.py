"""Every setting of alignment on the real pairs: accuracy of the child, and seconds.

    python -m experiments.studies.compare_solvers

Children at equal weights from 2,000 calibration images, seed 0; BatchNorm reset where there is any. One row per
pair and setting is added to the CSV as soon as it is there, and rows that are there are not computed again. Prints
the table in Markdown.

Accuracies are on the full test set, or with `--images held-out` on 5,000 training images that calibration did not
see: that is what the defaults were chosen on.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from depfuse import Recipe, fuse
from depfuse.data import DataSet, Loader, Split, calibration_loader
from depfuse.evaluate import evaluate
from depfuse.groups import ChannelGroups
from experiments.lib.parents.shared import PAIRS, Pair, require_shared

SETTINGS: list[dict[str, object]] = [
    *(
        {"criterion": "activations", "distance": distance, "taps": taps, "solver": "emd"}
        for distance in ("best", "cosine", "pearson", "cosine-pearson", "scaled", "euclidean")
        for taps in (("after", "before", "both") if distance == "pearson" else ("after",))
    ),
    *(
        {"criterion": "activations", "distance": "pearson", "solver": "sinkhorn", "regularisation": r}
        for r in (0.01, 0.1)
    ),
    *({"criterion": "weights", "solver": solver} for solver in ("emd", "sinkhorn", "coordinate-descent")),
    *({"criterion": "mixture", "solver": solver} for solver in ("emd", "sinkhorn", "coordinate-descent")),
]


def describe(setting: dict[str, object]) -> str:
    return ", ".join(str(value) for value in setting.values())


def held_out(data: DataSet) -> Split:
    """5,000 training images that are not among the 2,000 of the calibration with seed 0."""
    drawn = calibration_loader(data, 7000, seed=0)  # its first 2,000 are the calibration's
    return Split(drawn.images[2000:], drawn.labels[2000:])


def measure(pair: Pair, settings: list[dict[str, object]], images: str) -> Iterator[dict[str, object]]:
    networks, data = pair.networks(), pair.dataset()
    calibration = calibration_loader(data, 2000, seed=0)
    judged = Loader(data.test if images == "test" else held_out(data), data.preprocessing, batch_size=1000)
    groups: ChannelGroups | None = None
    for setting in settings:
        result = fuse(networks, Recipe.create(**{"refit": "none", **setting}), calibration, groups=groups)
        groups = result.groups
        seconds = result.seconds["merge"] + result.seconds["renorm"]
        accuracy = evaluate(result.child, judged).accuracy
        print(f"{pair.name:26s} {describe(setting):40s} {accuracy:.4f} {seconds:7.1f} s", flush=True)
        yield {"pair": pair.name, "setting": describe(setting), "accuracy": accuracy, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="*", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--images", choices=("test", "held-out"), default="test")
    parser.add_argument("--out", type=Path, help="the CSV; runs/solvers-IMAGES.csv if left out")
    chosen = parser.parse_args()
    require_shared()
    out: Path = chosen.out or Path(f"runs/solvers-{chosen.images}.csv")
    out.parent.mkdir(parents=True, exist_ok=True)
    table = pd.read_csv(out) if out.exists() else pd.DataFrame(columns=["pair", "setting"])
    for name in chosen.pairs:
        pair = PAIRS[name]
        known = set(table[table["pair"] == pair.name]["setting"])
        missing = [setting for setting in SETTINGS if describe(setting) not in known]
        for row in measure(pair, missing, chosen.images) if missing else ():
            table = pd.concat([table, pd.DataFrame([row])], ignore_index=True)
            table.to_csv(out.with_suffix(".tmp"), index=False)
            out.with_suffix(".tmp").replace(out)
    cells = (100 * table["accuracy"]).map("{:.2f}".format) + " (" + table["seconds"].map("{:.1f}".format) + " s)"
    wide = table.assign(cell=cells).pivot(index="setting", columns="pair", values="cell")
    wide = wide.reindex([describe(setting) for setting in SETTINGS])
    print("\n| setting | " + " | ".join(wide.columns) + " |")
    print("| --- " * (len(wide.columns) + 1) + "|")
    for setting, row in wide.iterrows():
        print(f"| {setting} | " + " | ".join(str(cell) for cell in row) + " |")


if __name__ == "__main__":
    main()
