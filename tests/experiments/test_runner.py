"""`python -m experiments`: everything is listed, runs by its name, and its page is written from stored rows."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest

from experiments.__main__ import main
from experiments.benchmarks import scaling, standard
from experiments.lib import places, registry
from experiments.lib.measurement import Measurement
from experiments.lib.study import Study, chosen_steps
from experiments.studies.ablate_child import STEPS
from experiments.studies.distances import DISTANCES

MACHINE = {"machine": "a processor", "threads": "1", "refused": ""}
THROUGHPUT = {"round": "0", "objectives": "2", "refit": "none", "workers": "4", "trials": "25"}
COSTS = (("one", 6.0), ("another", 10.0))  # seconds of the refit
# Experiment -> rows without their empty columns, and a line of its page.
STORED: dict[str, tuple[list[dict[str, object]], str]] = {
    "ablate_child": (
        [{"set": "digits", "settings": STEPS["naive average"].described, "seed": 0, "images": 0, "test_limit": 0,
          "step": "naive average", "accuracy": 0.5, "held_out_accuracy": 0.7, "parameters": 1, "seconds": 0.1,
          "cpu_seconds": 0.1}],
        "| naive average | 50.0 |",
    ),
    "distances": (
        [{"set": "digits-shipped", "settings": DISTANCES[name].described, "seed": seed, "images": 2000, "test_limit": 0,
          "accuracy": accuracy, "judged": judged, "cpu_seconds": 1.0}
         for seed, name, accuracy, judged in
         ((0, "pearson", 0.5, 2.0), (0, "scaled", 0.6, 1.0), (1, "pearson", 0.7, 1.0), (1, "scaled", 0.4, 2.0),
          (0, "pearson, sinkhorn 0.1", 0.9, 0.1), (1, "pearson, sinkhorn 0.1", 0.9, 0.1))],  # leaning: never chosen
        "| shipped pairs | pearson (1), scaled (1) | 45.0 ",
    ),
    "coverage": (
        [{"library": "torchvision", "family": "torchvision", "name": "vgg11", "status": "proved", "proof_error": 1e-15,
          "covered_share": 0.99, "find_seconds": 0.5, "pass_seconds": 0.2, "prove_seconds": 1.0}],
        "| torchvision | 1 of 1 | 1.0e-15 | 99.0 % | 0.5 s | 0.5 s |",
    ),
    "matching": (
        [{"part": "wide", "kind": "rank one", "by": "assigned", "seconds": 1.5}],
        "| rank one | assigned | 1.50 |  |",
    ),
    "fold_rates": (
        [{"task": "pictures", "norm": "batch", "rate": rate, "fold": 0, "dice": dice}
         for rate, dice in ((0.05, 0.5), (0.1, 0.7), (0.2, 0.6))],
        "| digits over pictures, 24 x 24 | batch | 50.0 | 70.0 | 60.0 | 0.1 |",
    ),
    "folds": (
        [{"task": "pictures", "norm": "batch", "network": network, "seed": 0, "dice": dice, "milliseconds": 1.0,
          "seconds": 1.0} for network, dice in
         (*((f"fold {number}", 0.6 + 0.02 * number) for number in range(5)), ("ensemble", 0.74), ("average", 0.25),
          ("average, reset", 0.25), ("refitted", 0.65), ("distilled", 0.7))],
        "| digits over pictures, 24 x 24, BatchNorm | 1.0 | 2.0 | 10.0 | 60 % | 0 of 1 |",
    ),
    "hubs": (
        [{"hub": "Lightning", "seed": 0, "parent 1": 0.5, "parent 2": 0.6, "ensemble": 0.9, "average": 0.1,
          "child": 0.8, "difference": 2e-6, "seconds": 20.0}],
        "| Lightning | 50.0 | 60.0 | 90.0 | 10.0 | 80.0 | 2.0e-06 | 20 |",
    ),
    "memory_of_folders": (
        [{"layout": "folder", "step": "fast", "photographs": count, "peak_mib": peak, "seconds": 30.0}
         for count, peak in ((200, 800.0), (20_000, 820.0))],
        "| of 200 | 1.02 |  |",
    ),
    "peers": (
        [{"network": "torchvision:vgg11", "package": "depfuse", "error": 0.0, "error_of_weights": 0.0, "moved": 0.5,
          "distance": 2.0, "seconds": 3.0}],
        "| vgg11 |  |  |  |  | kept (0e+00), with statistics kept (0e+00) | 50 % | 2.000 | 3.0 |",
    ),
    "proof_time": (
        [{"kind": "classification", "name": name, "input": "3x224x224", "parameters": 11.7e6, "groups": 13,
          "pass": 0.05, "find": 0.5, "prove": prove, "runs": 5, "proof_error": 1e-14}
         for name, prove in (("small", 1.5), ("large", 12.0))],
        "Beyond 10 s for classification and 60 s for the others: large (12 s).",
    ),
    "recovery": (
        [{"name": "timm:dla34", "images": 32, "seed": 0, "groups": 4, "channels": 1200, "by_weights": 4,
          "by_activations": 3, "weights_seconds": 0.5, "activations_seconds": 1.0}],
        "| timm:dla34 | 4 | 1,200 | 100.0% | 75.0% | 0.5 + 1.0 |",
    ),
    "scaling": (
        [{**cell, "seed": 0, "all": 2.0 * float(width), "matching": float(width)}
         for width, cell in scaling.AXES["width"].items()],
        "| exponent | 1.00 ± 0.00 | 1.00 ± 0.00 |",
    ),
    "standard": (
        [{"set": "digits", "preset": "standard", "images": 900, "processor": "as it is", "cores": 1, "run": run,
          "bare_cpu": 2.0, "refit_cpu": seconds, "refit_wall": 9.0, "refit_mib": 300.0, "parents_mib": 1.0,
          "accuracy": 0.98, "held_out_accuracy": 0.99} for run, seconds in enumerate((6.0, 5.0, 40.0))],
        "| pair 0 | standard | 900 | 2.00 | 6.0 | 3.00 | 300 | 1028 | 98.00 | 99.00 |",
    ),
    "detectors": (
        [{"network": network, "seed": seed, "all": all_, "0 to 4": 0.6, "5 to 9": 0.5, "all at 0.5": 0.8, "cost": cost,
          "seconds": 1.0} for seed in (0, 1)
         for network, all_, cost in (("side by side", 0.5, 40.0), ("refitted", 0.475 + 0.01 * seed, 20.0))],
        "| refitted | 2 | 48.0 ± 0.5 | 60.0 ± 0.0 | 50.0 ± 0.0 | 80.0 ± 0.0 | 0.96 ± 0.01 | 20 |",
    ),
    "self_training": (
        [{"set": "halves", "network": "beside", "seed": 0, "images": 5000, "passes": 4, "test_limit": 0,
          "accuracy": 0.8, "mirrored": 0.82, "seconds": 30.0}],
        "| heads side by side (two networks) | 80.0 (82.0) | 30 |",
    ),
    "tasks": (
        [{"task": "binary", "parents": "same", "network": network, "seed": 0, "score": score, "second": score,
          "seconds": 1.0} for network, score in
         (("parent 1", 0.8), ("parent 2", 0.9), ("ensemble", 0.9), ("trivial", 0.5), ("naive", 0.5), ("merged", 0.7),
          ("refitted", 0.9))],
        "| one logit: is a digit odd | 1 | 100.0 | 0.0 | 50.0 | 100.0 |",
    ),
    "throughput": (
        [{**THROUGHPUT, "way": way, "trials_per_second": rate, "storage_share": 0.1, "storage_seconds_per_trial": 0.02}
         for way, rate in (("independent", 2.0), ("shared", 1.0))],
        "| none | 2 | 2.00 | 1.00 | 0.50 | 0.50 | 10.0 % | 20 |",
    ),
    "upscalers": (
        [{"parents": "two kinds", "network": "refitted", "share": share, "seed": 0, "blur PSNR": blur,
          "jpeg PSNR": 24.0, "blur SSIM": 0.9, "jpeg SSIM": 0.8, "seconds": 1.0}
         for share, blur in ((0.25, 25.0), (0.5, 26.0), (0.75, 27.0))],
        "| refitted | 26.00 | 24.00 | 0.900 | 0.800 | 25.00 |",
    ),
}  # fmt: skip


def store(folder: Path, name: str) -> None:
    """Write the rows of an experiment as it does."""
    kind = declared(name)
    options = kind.parser().parse_args([])
    columns = (kind.cells(kind.setup(options, {})) if isinstance(kind, Study) else kind.scheme(options)).columns
    rows = [{**dict.fromkeys(columns, ""), **MACHINE, **row} for row in STORED[name][0]]
    folder.mkdir(exist_ok=True)
    pd.DataFrame(rows)[columns].to_csv(folder / f"{name}.csv", index=False)


def declared(name: str) -> Study | Measurement:
    """Load what an experiment declares."""
    module = import_module(".".join(registry.files()[name].relative_to(places.ROOT).with_suffix("").parts))
    return getattr(module, "STUDY", None) or module.MEASUREMENT


def test_a_list_has_every_experiment_with_what_it_claims(capsys) -> None:
    assert main(["list"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    folders = (places.ROOT / "experiments" / name for name in registry.FOLDERS)
    assert lines.keys() == {path.stem for of in folders for path in of.glob("[a-z]*.py")} | set(registry.TRAINERS)
    assert lines["ablate_parents"] == "What the number of parents and their shares do to the child."


def test_every_head_says_its_command() -> None:
    for name, path in registry.files().items():
        assert f"python -m experiments run {name}" in registry.docstring(path), name


def commands() -> list[str]:
    """Every command that runs an experiment, in README and documentation."""
    pages = [places.ROOT / "README.md", *sorted((places.ROOT / "docs").rglob("*.md"))]
    return sorted({one for page in pages for one in re.findall(r"experiments run ([^`\n]+)", page.read_text("utf-8"))})


@pytest.mark.parametrize("command", commands())
def test_every_command_in_the_documentation_is_understood(command: str) -> None:
    name, *words = shlex.split(command)
    module = import_module(".".join(registry.files()[name].relative_to(places.ROOT).with_suffix("").parts))
    own = getattr(module, "STUDY", None) or getattr(module, "MEASUREMENT", module)
    if hasattr(own, "parser"):
        options = own.parser().parse_args(words)
        if isinstance(own, Study):
            assert set(options.sets) <= set(own.parents)
            assert chosen_steps(own, options)


@pytest.mark.parametrize("name", STORED)
def test_a_page_is_rebuilt_from_stored_rows_of_every_kind(name: str, tmp_path: Path, capsys) -> None:
    store(tmp_path / "rows", name)
    page = tmp_path / "pages" / f"{registry.load(name).shown_as or name}.md"
    page.parent.mkdir()
    assert main(["tables", name, "--rows", str(tmp_path / "rows"), "--pages", str(page.parent)]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    text = page.read_text()
    assert STORED[name][1] in text
    assert f"# {registry.claims()[name]}\n" in text
    assert "Measured on a processor, 1 thread." in text
    assert "```" in text or "\npython -m experiments" not in text  # commands stay indented


def test_every_kind_of_rows_has_been_tried() -> None:
    kept = {name for name in registry.files() if registry.load(name).page is not None}
    measurements = {name for name in kept if isinstance(declared(name), Measurement)}
    assert measurements == STORED.keys() - {"ablate_child", "distances"}


def test_what_is_measured_is_shown_again_from_its_rows(tmp_path: Path, capsys) -> None:
    csv, pages = tmp_path / "recovery.csv", tmp_path / "pages"
    pages.mkdir()
    assert main(["run", "recovery", "digits_resnet(width=0.5)", "--csv", str(csv), "--threads", "1"]) == 0
    shown = capsys.readouterr().out.strip()
    assert "| 100.0% | 100.0% |" in shown
    assert main(["tables", "recovery", "--rows", str(tmp_path), "--pages", str(pages)]) == 0
    assert shown in (pages / "recovery.md").read_text()


def test_a_page_keeps_what_was_measured_earlier(tmp_path: Path, capsys) -> None:
    store(tmp_path / "rows", "ablate_child")
    page = tmp_path / "pages" / "ablate_child.md"
    page.parent.mkdir()
    page.write_text("# old\n\nold table\n\n## Measured earlier\n\n| what |\n")
    folders = ["--rows", str(tmp_path / "rows"), "--pages", str(page.parent)]
    assert main(["tables", *folders]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    text = page.read_text()
    assert text.startswith("# Every step of a fusion alone and together")
    assert "python -m experiments run ablate_child" in text
    assert "old table" not in text
    assert text.endswith("## Measured earlier\n\n| what |\n")
    assert main(["tables", "ablate_child", *folders]) == 0
    assert page.read_text() == text


def test_nothing_stored_and_wrong_words_end_with_2(tmp_path: Path, capsys) -> None:
    assert main(["tables", "ablate_groups", "--rows", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("nothing of ablate_groups is stored: measure it with")
    for words in (["run", "nothing"], ["tables", "nothing"]):
        assert main(words) == 2
        assert "there is no experiment 'nothing'" in capsys.readouterr().err
    for words in ([], ["run"], ["list", "x"], ["measure"]):
        assert main(words) == 2
        assert capsys.readouterr().err.startswith("Usage: ")


def test_runs_on_two_machines_are_in_two_tables() -> None:
    (row, *_), _ = STORED["standard"]
    rows = [{**MACHINE, **row, "machine": machine, "cores": "1", "refit_cpu": seconds} for machine, seconds in COSTS]
    shown = standard.tables(pd.DataFrame(rows, columns=[*standard.KEYS, *standard.VALUES, *MACHINE]))
    assert "one. The processor as it is, one thread, CPU seconds; medians of 1 run" in shown
    assert "another. The processor as it is" in shown
    assert "| 2.00 | 6.0 | 3.00 |" in shown
    assert "| 2.00 | 10.0 | 5.00 |" in shown
