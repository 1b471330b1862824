"""The few results of the README: rows of docs/results/headline.csv, written between its markers."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from depfuse.io.atomic_files import replacing
from experiments.lib import places
from experiments.lib.tables import markdown

BEGIN, END = "<!-- results:begin -->\n", "<!-- results:end -->\n"


def rows_file() -> Path:
    """Return where the rows are."""
    return places.PAGES / "headline.csv"


def table() -> str:
    """Format the rows as a table; each ends with a link to its page."""
    rows = pd.read_csv(rows_file(), dtype=str, keep_default_na=False)
    rows = rows.assign(child="**" + rows["child"] + "**", page="[page](docs/results/" + rows["page"] + ".md)")
    return markdown(list(rows), rows.to_numpy().tolist()) + "\n"


def renewed(text: str) -> str:
    """Replace what stands between the markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the README lacks {(BEGIN if not begin else END).strip()}")
    return before + begin + table() + end + after


def write_headline() -> Path | None:
    """Write the table into the README; None where there are no rows."""
    if not rows_file().exists():
        return None
    path = places.ROOT / "README.md"
    text = renewed(path.read_text(encoding="utf-8"))
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
