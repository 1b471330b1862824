"""The command line by the flags that settings had once: each is a `--set` today."""

from __future__ import annotations

from collections.abc import Sequence

from depfuse.cli import main as depfuse
from depfuse.recipe.old_names import OLD

KEPT = ("calibration", "weights", "distil")  # these are options still
COMMANDS = ("fuse", "path", "match", "tune")
SWITCHES = ("universe", "augment", "augment_statistics")
PATHS = {**{name: name for name in OLD}, "refit": "refit", "renorm": "renorm", "goal": "goal", "lr": "learning_rate"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, with flags such as `--refit-steps 8` given as settings."""
    return depfuse(arguments if arguments is None else translated(list(arguments)))


def translated(arguments: list[str]) -> list[str]:
    """Words of a command with `--set` for each flag of before."""
    if not arguments or arguments[0] not in COMMANDS:
        return arguments
    found: list[str] = []
    words = iter(arguments)
    for word in words:
        name = word.removeprefix("--").replace("-", "_")
        switched_off = name.startswith("no_") and name[3:] in SWITCHES
        plain = name.removeprefix("no_") if switched_off else name
        if not word.startswith("--") or plain not in PATHS or plain in KEPT:
            found.append(word)
        elif plain in SWITCHES:
            found += ["--set", f"{plain}={'no' if switched_off else 'yes'}"]
        else:
            found += ["--set", f"{PATHS[plain]}={next(words)}"]
    return found
