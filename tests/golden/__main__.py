"""Renew or check the golden records: `python -m tests.golden --write [NAME...]`, `--check [NAME...]`.

Records are taken on this kind of machine, and on what it is with AVX2 only where it has more. `--write` prints the
cases whose records changed, `--check` those that differ, with what does; the exit code is 1 if any does.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS))  # where pytest finds what tests share

from .cases import NAMES  # noqa: E402
from .compute import VALUES, compute, deviations, differences, merged, read, records_file, write  # noqa: E402
from .machine import kind  # noqa: E402

KINDS: dict[str, dict[str, str]] = {
    "native": {},
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
}


def check(names: list[str]) -> int:
    """Compare with the records of this kind of machine, or with the values where it has none."""
    records, values = read(records_file()), read(VALUES)
    print(f"{kind()}: {'records' if records else 'no records, compared by values'}")
    wrong = 0
    for name in names:
        started = time.perf_counter()
        outcome = compute(name)
        if name in records:
            found = differences(outcome, records[name])
        else:
            found = deviations(outcome, values[name]) if name in values else ["it has no values"]
        wrong += bool(found)
        print(f"{time.perf_counter() - started:6.2f} s  {name}: {'; '.join(found) or 'same'}", flush=True)
    print(f"{wrong} of {len(names)} cases differ")
    return int(wrong > 0)


def renew(names: list[str]) -> int:
    """Take records and values anew, on every kind that this machine can be."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in KINDS]
        workers = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.golden", "--take", str(file), *names],
                cwd=TESTS.parent,
                env={**os.environ, **KINDS[file.name], "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            )
            for file in files
        ]
        ended = [worker.wait() for worker in workers]
        if any(ended):
            return 1
        taken = [json.loads(file.read_text()) for file in files]
    changed = {name for one in taken for name in _store(records_file(one["kind"]), one["records"], names)}
    kinds = {records_file(one["kind"]) for one in taken}
    for other in set(records_file().parent.glob("*.json")) - kinds:  # what cannot be taken here is compared by values
        write(other, {name: record for name, record in read(other).items() if name not in changed})
    _store(VALUES, {name: merged([one["values"][name] for one in taken]) for name in names}, names)
    return 0


def _store(path: Path, found: dict[str, Any], names: list[str]) -> list[str]:
    """Store cases and return those whose record was another one."""
    before = read(path)
    kept = {name: before[name] for name in before if name in NAMES and name not in names}
    changed = [name for name in names if before.get(name) != found[name]]
    write(path, {**kept, **found})
    print(f"{path.name}: {len(changed)} of {len(names)} changed{': ' if changed else ''}{'; '.join(changed)}")
    return [name for name in changed if name in before]


def take(path: Path, names: list[str]) -> int:
    outcomes = {}
    for name in names:
        started = time.perf_counter()
        outcomes[name] = compute(name)
        print(f"{time.perf_counter() - started:6.2f} s  {name}", file=sys.stderr, flush=True)
    records = {name: outcome.record for name, outcome in outcomes.items()}
    values = {name: outcome.values for name, outcome in outcomes.items()}
    path.write_text(json.dumps({"kind": kind(), "records": records, "values": values}))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", action="store_true", help="take records anew")
    what.add_argument("--check", action="store_true", help="compare with them")
    what.add_argument("--take", type=Path, metavar="FILE", help="write what this process finds to a file of its own")
    parser.add_argument("names", nargs="*", metavar="NAME", help="cases; all where none is named")
    given = parser.parse_args()
    unknown = [name for name in given.names if name not in NAMES]
    if unknown:
        parser.error(f"there is no case {unknown[0]!r}: choose from {'; '.join(NAMES)}")
    names = given.names or list(NAMES)
    if given.take:
        return take(given.take, names)
    return renew(names) if given.write else check(names)


if __name__ == "__main__":
    sys.exit(main())
