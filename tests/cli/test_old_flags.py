"""Flags that settings had before `--set` go on working."""

from __future__ import annotations

import pytest

from depfuse.cli.old_flags import in_settings


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("fuse a b --refit-steps 8 --out c", "fuse a b --set refit_steps=8 --out c"),
        ("path a b --refit=none", "path a b --set refit=none"),
        ("tune a b --universe --no-augment", "tune a b --set universe=yes --set augment=no"),
        ("match a b --lr 0.1 --calibration 5", "match a b --set learning_rate=0.1 --calibration 5"),
        ("fuse a b --weights 0.5,0.5 --distil 1 --seed 3", "fuse a b --weights 0.5,0.5 --distil 1 --seed 3"),
        ("train x --lr 0.1", "train x --lr 0.1"),
        ("fuse a b --solver", "fuse a b --set solver="),
        ("fuse --reference", "fuse --set reference="),
    ],
)
def test_an_old_flag_is_a_setting(written: str, meant: str) -> None:
    assert in_settings(written.split()) == meant.split()
