"""The few results of the README: rows of docs/results/headline.csv, written between its markers."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from depfuse.io.atomic_files import replacing
from experiments.lib import places
from experiments.lib.tables import markdown

ROWS = "headline.csv"
BEGIN, END = "<!-- results:begin -->\n", "<!-- results:end -->\n"


def table(pages: Path) -> str:
    """Format the rows as a table; each ends with a link to its page."""
    rows = pd.read_csv(pages / ROWS, dtype=str, keep_default_na=False)
    rows = rows.assign(child="**" + rows["child"] + "**", page="[page](docs/results/" + rows["page"] + ".md)")
    return markdown(list(rows), rows.to_numpy().tolist()) + "\n"


def renewed(text: str, pages: Path = places.PAGES) -> str:
    """Replace what stands between the markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the README lacks {(BEGIN if not begin else END).strip()}")
    return before + begin + table(pages) + end + after


def write_headline(pages: Path = places.PAGES) -> Path | None:
    """Write the table of a folder of pages into the README; None where there are no rows."""
    if not (pages / ROWS).exists():
        return None
    path = places.ROOT / "README.md"
    text = renewed(path.read_text(encoding="utf-8"), pages)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
