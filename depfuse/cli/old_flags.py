"""Flags that settings had before `--set`. They go on working, and are not in the help."""

from __future__ import annotations

from collections.abc import Sequence

from depfuse.recipe.old_names import OLD

COMMANDS = ("fuse", "path", "match", "tune")
STILL_OPTIONS = ("calibration", "weights", "distil")
SWITCHES = ("universe", "augment", "augment_statistics")
NAMES = {**{name: name for name in OLD}, "refit": "refit", "renorm": "renorm", "goal": "goal", "lr": "learning_rate"}


def in_settings(arguments: Sequence[str]) -> list[str]:
    """Write the words of a command with `--set` for each old flag: `--refit-steps 8` is `--set refit_steps=8`."""
    if not arguments or arguments[0] not in COMMANDS:
        return list(arguments)
    written: list[str] = []
    words = iter(arguments)
    for word in words:
        flag, _, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        switch = name.removeprefix("no_")
        if not flag.startswith("--"):
            written.append(word)
        elif switch in SWITCHES and not value:
            written += ["--set", f"{NAMES[switch]}={'yes' if name == switch else 'no'}"]
        elif name in NAMES and name not in (*STILL_OPTIONS, *SWITCHES):
            value = value or next(words, "")
            written += ["--set", f"{NAMES[name]}={value}"]
        else:
            written.append(word)
    return written
