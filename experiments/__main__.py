"""Measure, show and list experiments: `python -m experiments run NAME [OPTIONS]`, `tables [NAME ...]`, `list`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.lib import places
from experiments.lib.headline import write_headline
from experiments.lib.registry import claims, load, write_page

USAGE = """Usage: python -m experiments list
       python -m experiments run NAME [OPTIONS]    (--help says which)
       python -m experiments tables [NAME ...] [--rows FOLDER] [--pages FOLDER]"""


def main(words: Sequence[str]) -> int:
    """0 where all is well, 1 where cells failed or a bound is missed, 2 where the request or the data are wrong."""
    known = claims()
    command, names = (words[0], words[1:]) if words else ("", [])
    if command not in ("list", "run", "tables") or (command == "run") > bool(names) or (command == "list" and names):
        print(USAGE, file=sys.stderr)
        return 2
    options = argparse.Namespace(names=names[:1])
    if command == "tables":
        parser = argparse.ArgumentParser(prog="python -m experiments tables")
        parser.add_argument("names", nargs="*", metavar="NAME", help="all that has been measured, if left out")
        parser.add_argument("--rows", type=Path, default=places.MEASUREMENTS, metavar="FOLDER", help="where rows are")
        parser.add_argument("--pages", type=Path, default=places.PAGES, metavar="FOLDER", help="where pages go")
        options = parser.parse_args(names)
    if unknown := [name for name in options.names if name not in known]:
        print(f"there is no experiment {unknown[0]!r}: python -m experiments list names all", file=sys.stderr)
        return 2
    if command == "list":
        width = max(map(len, known))
        print("\n".join(f"{name:{width}}  {claim}" for name, claim in known.items()))
        return 0
    if command == "run":
        return load(names[0]).main(names[1:])
    return write_pages(options.names, list(known), options.rows, options.pages)


def write_pages(names: Sequence[str], known: Sequence[str], rows: Path, pages: Path) -> int:
    """Write the pages that were asked for, or of all that has been measured, and the README's table."""
    written = []
    for name in names or known:
        page = write_page(name, rows, pages)
        if page is not None:
            written.append(name)
            print(page)
        elif names:
            print(f"nothing of {name} is stored: measure it with python -m experiments run {name}", file=sys.stderr)
            return 2
    if not written:
        print("nothing is stored: python -m experiments run NAME measures", file=sys.stderr)
    if not names and (readme := write_headline(pages)) is not None:
        print(readme)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
