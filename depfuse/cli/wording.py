"""What the library calls its arguments, in the words of the command line.

A message below the command line names an argument as one writes it in Python, between backticks: `align.order=2`,
`device="cpu"`, `merge.weights`. `in_options` writes the option for it.
"""

from __future__ import annotations

import re

from depfuse.recipe import Recipe
from depfuse.recipe.arrange import known_places

# Argument, or a whole call, -> its option; {} is the value, where the message gives one.
OPTIONS = {
    "align.allow_fixed": "--allow-fixed",
    "background": "--background",
    "call": "call=... of fuse, in Python",
    "calibration.images": "--calibration {}",
    "crop": "--crop {}",
    "device": "--device {}",
    "example": "--input-shape C,H,W",
    "key": "--key {}",
    "labels": "--classes",
    "load_data": "--data {}",
    "mean": "--mean",
    "name": "name with --study",
    "picture": "--picture",
    "preset": "--preset {}",
    "resume": "--resume",
    "scores": "scores=... of fuse, in Python",
    "size": "--size",
    "std": "--std",
    "task": "--task {}",
    "test": "--test",
    "template": "--width and --child-arch",
    "trust": "--trust FILE",
    "url": "--storage",
    "result.save(file)": "--out FILE",
    "safetensors.torch.save_file(comparison.baseline.network.state_dict(), file)": (
        "running again with --out-parent FILE"
    ),
}
ARGUMENT = re.compile(r"`(?P<whole>(?P<name>[a-z_][\w.]*)(?:=(?P<given>[^`]*)|\((?P<called>[^`]*)\))?)`")


def in_options(sentence: str) -> str:
    """Write each argument or setting between backticks as the option that gives it; all else stays."""
    return ARGUMENT.sub(_option, sentence)


def _option(argument: re.Match[str]) -> str:
    name, value = argument["name"], (argument["given"] or argument["called"] or "").strip("\"'")
    option = OPTIONS.get(argument["whole"], OPTIONS.get(name))
    if option is None and name in known_places(Recipe):
        option = f"--set {name}={{}}" if value else f"--set {name}"
    return argument[0] if option is None else option.format(value).strip()
