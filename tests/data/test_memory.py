"""Free memory is that of the machine and of the container."""

from __future__ import annotations

from pathlib import Path

import pytest

from depfuse.data.memory import _free_in_container, free_memory


@pytest.mark.parametrize(
    ("most", "free"), [("1000", 1000 - 700 + 300), ("600", 200), ("100", 0), ("max", None), (None, None)]
)
def test_a_container_has_its_limit_less_what_it_has_taken_but_for_cache(
    most: str | None, free: int | None, tmp_path: Path
) -> None:
    place = tmp_path / "memory.max", tmp_path / "memory.current", tmp_path / "memory.stat"
    if most is not None:
        place[0].write_text(f"{most}\n")
    place[1].write_text("700\n")
    place[2].write_text("anon 400\ninactive_file 300\nactive_file 0\n")
    assert _free_in_container([place]) == free


def test_this_machine_has_some() -> None:
    free = free_memory()
    assert free is not None
    assert free > 0
