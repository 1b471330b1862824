"""The command line: what it writes, what it says, and that bad input ends in one sentence and no file."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_one_sentence
from safetensors.torch import save_file
from torch import nn

from depfuse.cli import main
from depfuse.cli.app import COMMANDS
from depfuse.cli.classes import of_card
from depfuse.data import Preprocessing, load_data
from depfuse.io.cards import Card
from depfuse.io.checkpoint import read_checkpoint, write_checkpoint
from depfuse.report import PathReport, read_report

NETWORK = '''
import torch
from torch import nn


def tiny(width=6, classes=4, norm=True):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Conv2d(width, 5, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(20, classes),
    )


def renamed(width=6):
    return tiny(width)


def broken():
    raise ValueError("this factory is broken")


def number():
    return 3


class Mixer(nn.Module):
    """Channels that cannot be permuted: each is added to its neighbour."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 4, 3), nn.Linear(4, 2)

    def forward(self, x):
        x = self.first(x)
        return self.last((x + x.cumsum(1)).mean((2, 3)))
'''


class Place:
    """A folder with a network file, data and two trained-looking parents."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "nets.py").write_text(NETWORK)
        self.arch = f"{folder / 'nets.py'}:tiny"
        self.data = folder / "data.npz"
        write_data(self.data)
        self.parents = [folder / "a.safetensors", folder / "b.safetensors"]
        for seed, path in enumerate(self.parents):
            self.write_parent(path, seed)

    def write_parent(self, path: Path, seed: int, arch: str | None = None, **options: object) -> None:
        torch.manual_seed(seed)
        card = Card(
            architecture=arch or self.arch,
            data=str(self.data),
            preprocessing=Preprocessing.create(mean=(0.5,), std=(0.25,)),
        )
        write_checkpoint(path, tiny(**options).state_dict(), card)

    def fuse(self, *arguments: object, parents: list[Path] | None = None, command: str = "fuse") -> int:
        given = [str(p) for p in (self.parents if parents is None else parents)]
        out = ["--out", str(self.folder / "child.safetensors")]
        recipe = ["--calibration", "32", "--batch-size", "16", "--refit", "none"]
        named = {"--arch", "--data"} <= set(arguments)
        trusted = () if named else [file for file in given if not file.endswith(".pth")]
        return main([command, *given, *trust(*trusted), *recipe, *out, *map(str, arguments)])


def trust(*paths: object) -> list[str]:
    """Options that take the cards' words for the user's own: these parents name a file of his and his data."""
    return [word for path in paths for word in ("--trust", str(path))]


def tiny(width: int = 6, classes: int = 4, norm: bool = True) -> nn.Module:
    scope: dict[str, object] = {}
    exec(NETWORK, scope)
    return scope["tiny"](width, classes, norm)  # type: ignore[operator, no-any-return]


def write_data(path: Path, *, channels: int | None = None, side: int = 6, classes: int = 4, count: int = 40) -> None:
    generator = np.random.default_rng(0)
    shape = (side, side) if channels is None else (side, side, channels)
    arrays = {}
    for part in ("train", "test"):
        arrays[f"x_{part}"] = generator.integers(0, 256, (count, *shape), dtype=np.uint8)
        arrays[f"y_{part}"] = np.arange(count) % classes
    np.savez(path, **arrays)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def refused(place: Place, capsys: pytest.CaptureFixture[str]):
    """Check that a command line is refused: code 2, one line that holds the words, nothing written."""

    def check(code: int, *words: str) -> None:
        after = files(place.folder)
        assert_one_sentence(capsys, code, *words)
        assert after == before

    before = files(place.folder)
    return check


def files(folder: Path) -> dict[str, bytes]:
    """Contents of every file, but not of what Python and the test itself leave."""
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path): path.read_bytes() for path in found if not path.name.startswith("input")}


# --- help ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_that_parses(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"Example: {COMMANDS[command].example}" in text
    needless = {
        **dict.fromkeys(("report", "demo"), ("--device",)),
        **dict.fromkeys(("recipes", "settings", "inspect"), ("--device", "--quiet")),
    }
    for option in {"--device", "--quiet"}.difference(needless.get(command, ())):
        assert option in text
    words = COMMANDS[command].example.split()
    assert words[:2] == ["depfuse", command]
    for word in words:
        assert not word.startswith("--") or word in text


def test_help_lists_the_commands_and_is_fast(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == 0
    code = "import sys, depfuse.cli; depfuse.cli.main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, "help imports torch"
    assert all(f"\n  {command}" in done.stdout for command in COMMANDS)


def test_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "depfuse", "--version"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith("depfuse")


def test_every_setting_of_a_training_is_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    from depfuse.train import TrainRecipe

    main(["train", "--help-all"])
    text = capsys.readouterr().out
    for name in TrainRecipe.model_fields:
        assert f"--{name.replace('_', '-')}" in text


@pytest.mark.parametrize("command", ["fuse", "path", "match", "tune"])
def test_help_is_short_and_says_where_the_settings_are(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([command, "--help"])
    text = capsys.readouterr().out
    assert "--set SETTING=VALUE" in text
    assert "`depfuse settings` lists all" in " ".join(text.split())
    assert "--refit" not in text


def test_every_section_of_a_recipe_is_in_the_reference(capsys: pytest.CaptureFixture[str]) -> None:
    from depfuse.recipe import Recipe

    assert main(["settings"]) == 0
    text = capsys.readouterr().out
    for name in Recipe.model_fields.keys() - {"preset"}:  # which is an option of its own
        assert name in text


# --- what works ------------------------------------------------------------------------------------


def test_at_a_terminal_a_plot_says_what_it_takes(place: Place, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert place.fuse("--plot", place.folder / "path.png") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "the plot takes 9 matched networks and 9 naive averages, each with a pass over" in said
    assert place.fuse("--plot", place.folder / "path.png", "--refit", "ridge", "--refit-steps", "0") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "the plot takes 3 matched and 3 naive averages, each with a pass over 40 test images; none is refitted" in said
    )


def test_fuse_writes_child_report_and_plot(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    report, plot = place.folder / "report.json", place.folder / "path.png"
    code = place.fuse("--report", report, "--plot", plot, "--weights", "0.25,0.75", "--seed", 3)
    stdout, stderr = capsys.readouterr()
    assert code == 0, stderr
    assert stderr == ""
    found = read_report(report)
    assert isinstance(found, PathReport)
    assert [Path(parent.path or "") for parent in found.parents] == place.parents
    assert [p.digest for p in found.parents] == [read_checkpoint(path).digest for path in place.parents]
    assert found.recipe["merge"]["weights"] == [0.25, 0.75]
    assert found.recipe["seed"] == 3
    assert found.recipe["calibration"]["images"] == 32
    assert found.groups.count == 2
    assert found.groups.free_channels == 11
    assert found.groups.proof_error is not None
    assert found.groups.proof_error <= 1e-9
    assert found.architecture == place.arch
    assert found.preprocessing["mean"] == [0.5]
    assert found.images == 40
    assert found.command[:2] == ["depfuse", "fuse"]
    assert found.verdict in stdout
    assert "logit ensemble" in stdout
    assert plot.read_bytes().startswith(b"\x89PNG")
    seconds = found.seconds.model_dump()
    assert set(seconds) >= {"groups", "align", "merge", "renorm", "evaluate"}
    assert all(value >= 0 for value in seconds.values())

    child = read_checkpoint(place.folder / "child.safetensors")
    assert child.card is not None
    assert child.card.architecture == place.arch
    assert child.card.metrics["accuracy"] == found.child.accuracy
    assert child.card.seeds == {"fuse": 3}
    assert [p.digest for p in child.card.parents] == [p.digest for p in found.parents]
    assert child.card.recipe == found.recipe
    assert child.digest == found.child.digest


def test_child_is_an_ordinary_network(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    report, again = place.folder / "report.json", place.folder / "again.json"
    assert place.fuse("--report", report) == 0
    child = place.folder / "child.safetensors"
    assert main(["eval", str(child), *trust(child), "--report", str(again)]) == 0
    fused, evaluated = read_report(report), read_report(again)
    assert evaluated.networks[0].accuracy == fused.child.accuracy
    assert evaluated.networks[0].loss == pytest.approx(fused.child.loss, abs=1e-6)
    assert place.fuse("--out", place.folder / "grandchild.safetensors", parents=[child, place.parents[0]]) == 0


def test_same_command_gives_the_same_child(place: Place) -> None:
    child = place.folder / "child.safetensors"
    digests = []
    for _ in range(2):
        assert place.fuse("--quiet") == 0
        digests.append(read_checkpoint(child).digest)
    assert digests[0] == digests[1]


def test_three_parents_are_fused(place: Place) -> None:
    third = place.folder / "c.safetensors"
    place.write_parent(third, 2)
    report = place.folder / "report.json"
    assert place.fuse("--report", report, parents=[*place.parents, third]) == 0
    assert len(read_report(report).parents) == 3


def test_network_without_batch_norm_by_weights_needs_no_calibration(place: Place) -> None:
    arch = f"{place.arch}(norm=False)"
    for seed, path in enumerate(place.parents):
        place.write_parent(path, seed, arch, norm=False)
    report = place.folder / "report.json"
    assert place.fuse("--criterion", "weights", "--calibration", 0, "--report", report) == 0
    found = read_report(report)
    assert found.naive == found.naive_renorm


def test_foreign_checkpoints_need_the_architecture_only(place: Place) -> None:
    parents = []
    for seed in range(2):
        torch.manual_seed(seed)
        parents.append(place.folder / f"{seed}.pth")
        torch.save({"state_dict": {f"module.{k}": v for k, v in tiny().state_dict().items()}}, parents[-1])
    report = place.folder / "report.json"
    code = place.fuse(
        "--arch", place.arch, "--data", place.data, "--mean", "0.5", "--std", "0.25", "--report", report,
        parents=parents,
    )  # fmt: skip
    assert code == 0
    assert read_report(report).preprocessing["std"] == [0.25]


def test_path_runs_from_parent_to_parent(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    report, plot = place.folder / "path.json", place.folder / "path.svg"
    code = main(
        ["path", *map(str, place.parents), *trust(*place.parents), "--points", "3", "--calibration", "32",
         "--refit", "none",
         "--report", str(report), "--plot", str(plot)]
    )  # fmt: skip
    stdout, stderr = capsys.readouterr()
    assert code == 0, stderr
    found = read_report(report)
    assert isinstance(found, PathReport)
    assert [row.alpha for row in found.path] == [row.alpha for row in found.naive_path] == [0.0, 0.5, 1.0]
    for path in (found.path, found.naive_path):
        assert path[0].accuracy == found.parents[0].accuracy
        assert path[-1].loss == found.parents[1].loss
    assert found.path[1].loss == pytest.approx(found.child.loss, abs=1e-6)
    assert found.barrier.loss is not None
    assert found.barrier.loss >= 0
    assert "barrier" in stdout
    assert plot.exists()
    assert not (place.folder / "child.safetensors").exists()


def test_alpha_is_the_share_of_the_second_parent(place: Place) -> None:
    report = place.folder / "path.json"
    place.fuse("--points", 5, "--report", report, "--weights", "0.25,0.75", command="path")
    found = read_report(report)
    assert isinstance(found, PathReport)
    assert found.path[3].alpha == 0.75
    assert found.path[3].loss == pytest.approx(found.child.loss, abs=1e-6)


def test_eval_shows_every_network(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    report = place.folder / "report.json"
    assert main(["eval", *map(str, place.parents), *trust(*place.parents), "--report", str(report)]) == 0
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert rows == ["network", "a.safetensors", "b.safetensors"]
    networks = json.loads(report.read_text())["networks"]
    with torch.no_grad():
        model = tiny()
        model.load_state_dict(read_checkpoint(place.parents[0]).state)
        file = np.load(place.data)
        images = (torch.from_numpy(file["x_test"]).float()[:, None] / 255 - 0.5) / 0.25
        right = model.eval()(images).argmax(1) == torch.from_numpy(file["y_test"])
    assert networks[0]["accuracy"] == int(right.sum()) / len(right)


def test_train_writes_a_network_that_is_evaluated(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    out = place.folder / "new.safetensors"
    code = main(
        ["train", place.arch, "--data", str(place.data), "--out", str(out), "--epochs", "2",
         "--batch-size", "16", "--lr", "0.01", "--labels", "0-1,2-3:0.5", "--seed", "4"]
    )  # fmt: skip
    stdout, stderr = capsys.readouterr()
    assert code == 0, stderr
    assert "% of the test images" in stdout
    card = read_checkpoint(out).card
    assert card is not None
    assert card.seeds["train"] == 4
    assert card.recipe is not None
    assert card.recipe["epochs"] == 2
    assert card.recipe["learning_rate"] == 0.01
    assert card.recipe["labels"] == "0-1,2-3:0.5"
    assert card.classes == (0, 1, 2, 3)
    assert [path.name for path in place.folder.glob("new*")] == ["new.safetensors"]
    assert main(["eval", str(out), *trust(out)]) == 0


def test_training_that_was_cut_off_goes_on(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    steps = place.folder / "steps"  # a byte for each step that is left until the interruption
    (place.folder / "cut.py").write_text(
        f"{NETWORK}\nfrom pathlib import Path\n\nSTEPS = Path(__file__).with_name('steps')\n\n\n"
        "def step(network, inputs):\n"
        "    if network.training and STEPS.exists():\n"
        "        left = STEPS.read_bytes()\n"
        "        if not left:\n"
        "            raise KeyboardInterrupt\n"
        "        STEPS.write_bytes(left[1:])\n\n\n"
        "def cut():\n    network = tiny()\n    network.register_forward_pre_hook(step)\n    return network\n"
    )

    def command(name: str) -> list[str]:
        options = ["--data", str(place.data), "--epochs", "3", "--batch-size", "16", "--save-seconds", "0", "--quiet"]
        return ["train", f"{place.folder / 'cut.py'}:cut", "--out", str(place.folder / name), *options]

    assert main(command("whole.safetensors")) == 0
    steps.write_bytes(bytes(2 * 2 + 1))  # two epochs of two batches, and one step of the third
    assert main(command("parts.safetensors")) == 130
    assert steps.read_bytes() == b""
    assert not (place.folder / "parts.safetensors").exists()
    assert (place.folder / "parts.safetensors.training").exists()
    said = capsys.readouterr().err
    assert "depfuse: interrupted while training: epoch 2 of 3, loss" in said  # which is the last that is over
    assert "parts.safetensors.training holds the training after epoch 2, from which the same command goes on" in said
    steps.write_bytes(bytes(2))  # the third epoch alone is left
    assert main(command("parts.safetensors")) == 0
    assert steps.read_bytes() == b""
    whole, parts = (read_checkpoint(place.folder / f"{name}.safetensors") for name in ("whole", "parts"))
    assert whole.digest == parts.digest
    assert not (place.folder / "parts.safetensors.training").exists()


def test_halves_of_the_data_differ(place: Place) -> None:
    digests = set()
    for half in ("0", "1"):
        out = place.folder / f"half{half}.safetensors"
        options = ["--data", str(place.data), "--epochs", "1", "--batch-size", "8", "--no-resume", "--quiet"]
        assert main(["train", place.arch, "--out", str(out), "--half", half, *options]) == 0
        digests.add(read_checkpoint(out).digest)
    assert len(digests) == 2


def test_quiet_prints_nothing(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.fuse("--quiet") == 0
    assert main(["eval", str(place.parents[0]), *trust(place.parents[0]), "--quiet"]) == 0
    assert main(["groups", place.arch, "--input-shape", "1,6,6", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_groups_are_printed_and_proved(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["groups", place.arch, "--input-shape", "1,6,6"]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[-1].startswith("2 free groups, 11 channels, ")
    assert "; proved, relative error" in text.splitlines()[-1]
    assert main(["groups", place.arch, "--input-shape", "1,6,6", "--no-prove"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("; not proved")


def test_groups_that_cannot_be_permuted_are_named(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["groups", f"{place.folder / 'nets.py'}:Mixer", "--input-shape", "1,6,6"])
    last = capsys.readouterr().out.splitlines()[-1]
    assert code == 1
    assert "first" in last


# --- what is refused -------------------------------------------------------------------------------


def test_parents_of_different_architectures(place: Place, refused) -> None:
    other = place.folder / "input.safetensors"
    place.write_parent(other, 2, place.arch.replace(":tiny", ":renamed"))
    refused(place.fuse(parents=[place.parents[0], other]), "a.safetensors", "input.safetensors", ":renamed")


def test_parents_of_different_depth(place: Place, refused) -> None:
    other = place.folder / "input.safetensors"
    place.write_parent(other, 2, f"{place.arch}(norm=False)", norm=False)
    refused(place.fuse(parents=[place.parents[0], other]), "parent 2", "architecture or depth", "1.weight")


def test_parents_of_unequal_widths(place: Place) -> None:
    other, report = place.folder / "wide.safetensors", place.folder / "report.json"
    place.write_parent(other, 2, f"{place.arch}(width=9)", width=9)
    parents = [place.parents[0], other]
    for options, width in (([], 9), (["--width-of", 1], 6), (["--width", 4], 4)):
        assert place.fuse("--report", report, *options, parents=parents) == 0
        assert read_checkpoint(place.folder / "child.safetensors").state["0.weight"].shape[0] == width
        found = read_report(report)
        assert found.architecture == (place.arch if width == 6 else f"{place.arch}(width={width})")
        assert len(found.heads) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--width-of", 3], ["width_of 3", "names no parent"]),
        (["--width", 3, "--width-of", 1], ["--width", "merge.width_of", "one of them"]),
        (["--width", 0], ["--width 0", "more than 0"]),
        (["--width", 8, "--child-arch", "digits_resnet"], ["--width", "--child-arch", "one of them"]),
        (["--child-arch", "digits_resnet"], ["digits_resnet", "another architecture"]),
        (["--universe"], ["align.through", "unequal widths"]),
        (["--plot", "path.png"], ["one width", "--plot"]),
    ],
)
def test_widths_that_cannot_be_reached(place: Place, refused, options: list[object], words: list[str]) -> None:
    other = place.folder / "input.safetensors"
    place.write_parent(other, 2, f"{place.arch}(width=9)", width=9)
    command = "path" if "--plot" in options else "fuse"
    refused(place.fuse(*options, parents=[place.parents[0], other], command=command), *words)


def test_parents_of_different_shapes(place: Place, refused) -> None:
    other = place.folder / "input.safetensors"
    place.write_parent(other, 2, width=7)
    code = place.fuse(parents=[place.parents[0], other])
    refused(code, "input.safetensors does not fit", "0.weight", "(7, ", "(6, ")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("3.bias"), ["3.bias", "missing"]),
        (lambda state: state.update({"9.weight": torch.ones(2)}), ["9.weight", "left over"]),
        (lambda state: state["3.bias"].fill_(float("nan")), ["3.bias", "NaN"]),
        (lambda state: state["0.weight"].view(-1)[3:4].fill_(float("inf")), ["0.weight", "infinity"]),
    ],
    ids=["missing", "extra", "nan", "infinite"],
)
def test_weights_that_do_not_fit(place: Place, refused, change, words: list[str]) -> None:
    state = dict(tiny().state_dict())
    change(state)
    broken = place.folder / "input.pth"
    torch.save(state, broken)
    refused(place.fuse("--arch", place.arch, parents=[place.parents[0], broken]), "input.pth", *words)


class Dangerous:
    def __reduce__(self):
        return (print, ("code ran",))


@pytest.mark.parametrize("kind", ["text", "empty", "truncated", "truncated torch", "code", "folder", "absent"])
def test_files_that_are_no_checkpoints(place: Place, refused, kind: str) -> None:
    broken = place.folder / "input.safetensors"
    if kind == "text":
        broken.write_text("This is not a checkpoint, but a sentence.")
    elif kind == "empty":
        broken.touch()
    elif kind == "truncated":
        save_file({"w": torch.ones(100)}, broken)
        broken.write_bytes(broken.read_bytes()[:200])
    elif kind == "truncated torch":
        torch.save(tiny().state_dict(), broken)
        broken.write_bytes(broken.read_bytes()[:700])
    elif kind == "code":
        torch.save({"state_dict": Dangerous()}, broken)
    elif kind == "folder":
        broken.mkdir()
    refused(place.fuse("--arch", place.arch, parents=[place.parents[0], broken]), "input.safetensors")


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        ("resnet1000", ["resnet1000"]),
        ("torchvision:resnet1000", ["torchvision", "resnet1000"]),
        ("FOLDER/absent.py:tiny", ["absent.py"]),
        ("FOLDER/nets.py:absent", ["absent"]),
        ("FOLDER/nets.py:broken", ["this factory is broken"]),
        ("FOLDER/nets.py:number", ["int"]),
        ("FOLDER/nets.py", ["is a file: say which function or class", "nets.py:Net"]),
        ("FOLDER/nets.py:tiny(depth=3)", ["depth"]),
        ("FOLDER/nets.py:tiny(", ["tiny("]),
    ],
)
def test_architectures_that_do_not_resolve(place: Place, refused, arch: str, words: list[str]) -> None:
    arch = arch.replace("FOLDER", str(place.folder))
    refused(place.fuse("--arch", arch), *words)


def test_architecture_that_nobody_says(place: Place, refused) -> None:
    foreign = place.folder / "input.pth"
    torch.save(tiny().state_dict(), foreign)
    refused(place.fuse(parents=[place.parents[0], foreign]), "input.pth", "--arch")


@pytest.mark.parametrize(
    ("shape", "words"),
    [("3,6,6", ["3"]), ("1,1,1", []), ("1,a", ["--input-shape"]), ("0,6,6", ["--input-shape"])],
)
def test_example_inputs_of_the_wrong_shape(place: Place, refused, shape: str, words: list[str]) -> None:
    refused(main(["groups", place.arch, "--input-shape", shape]), *words)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"channels": 5}, ["5", "do not fit"]),
        ({"side": 9}, ["1x9x9", "do not fit"]),
        ({"classes": 7}, ["4 outputs", "7 classes", "out of range"]),
    ],
)
def test_data_that_do_not_fit(place: Place, refused, data: dict[str, int], words: list[str]) -> None:
    other = place.folder / "input.npz"
    write_data(other, **data)
    refused(place.fuse("--data", other, "--arch", f"{place.arch}(classes=4)"), *words)


def test_data_that_are_not_there(place: Place, refused) -> None:
    refused(place.fuse("--data", "digit"), "digit", "did you mean digits?")
    refused(place.fuse("--data", place.folder / "absent.npz"), "absent.npz")


@pytest.mark.parametrize(("count", "words"), [(0, "0 calibration images are"), (1, "1 calibration image is")])
def test_calibration_sets_without_statistics(place: Place, refused, count: int, words: str) -> None:
    refused(place.fuse("--calibration", count), words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--weights", "0.5,0.6"], ["weights", "sum to 1.1", "must sum to 1"]),
        (["--weights", "0.5,-0.5"], ["weights", "negative"]),
        (["--weights", "0.2,0.3,0.5"], ["3 weights for 2 parents"]),
        (["--weights", "half,half"], ["--weights", "numbers"]),
        (["--criterion", "taste"], ["criterion", "activations"]),
        (["--solver", "magic"], ["solver", "sinkhorn"]),
        (["--mixture", "2"], ["mixture"]),
        (["--regularisation", "0"], ["regularisation"]),
        (["--batch-size", "0"], ["batch_size"]),
        (["--batch-size", "many"], ["batch_size", "integer"]),
        (["--mean", "grey"], ["--mean", "numbers"]),
        (["--std", "0"], ["std", "positive"]),
        (["--mean", "0.1,0.2,0.3", "--std", "1,1,1"], ["mean", "3"]),
        (["--colour"], ["--colour", "depfuse fuse --help"]),
        (["--device", "abacus"], ["abacus"]),
        (["--plot", "path.txt"], ["path.txt", ".png"]),
        (["--out", "child.bin"], ["child.bin", ".safetensors"]),
    ],
)
def test_settings_that_make_no_sense(place: Place, refused, options: list[str], words: list[str]) -> None:
    refused(place.fuse(*options), *words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
@pytest.mark.parametrize("command", ["fuse", "path"])
def test_cuda_where_there_is_none(place: Place, refused, command: str) -> None:
    refused(place.fuse("--device", "cuda", command=command), "cuda", "--device cpu")


@pytest.mark.parametrize("option", ["--out", "--report", "--plot"])
def test_outputs_that_cannot_be_written(place: Place, refused, option: str) -> None:
    blocked = place.folder / "nets.py" / "child.safetensors"
    suffix = {"--out": ".safetensors", "--report": ".json", "--plot": ".png"}[option]
    refused(place.fuse(option, blocked.with_suffix(suffix)), "nets.py", "cannot be written")
    folder = place.folder / f"folder{suffix}"
    folder.mkdir()
    refused(place.fuse(option, folder), folder.name, "cannot be written")


def test_outputs_over_inputs_or_one_another(place: Place, refused) -> None:
    refused(place.fuse("--out", place.parents[1]), "b.safetensors", "overwrite")
    report = place.folder / "same.png"
    refused(place.fuse("--report", report, "--plot", report), "same.png", "overwrite")


def test_too_few_or_too_many_parents(place: Place, refused) -> None:
    refused(place.fuse(parents=place.parents[:1]), "at least two parents")
    third = place.folder / "input.safetensors"
    place.write_parent(third, 2)
    refused(place.fuse(parents=[*place.parents, third], command="path"), "two parents, not 3")
    refused(place.fuse("--points", 1, command="path"), "at least 2")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--labels", "0-9"], ["label"]),
        (["--labels", "zero"], ["labels", "zero"]),
        (["--half", "2"], ["--half"]),
        (["--half", "0", "--share", "0/2"], ["--half", "--share"]),
        (["--share", "2/2"], ["share 2 of 2"]),
        (["--share", "most"], ["--share", "0/4"]),
        (["--dirichlet", "0.3"], ["--dirichlet", "--share"]),
        (["--schedule", "sometimes"], ["schedule", "cosine"]),
        (["--lr", "-1"], ["learning_rate"]),
        (["--out", "new.pt"], ["new.pt", ".safetensors"]),
        (["--device", "abacus"], ["abacus"]),
    ],
)
def test_trainings_that_make_no_sense(place: Place, refused, options: list[str], words: list[str]) -> None:
    out = ["--out", str(place.folder / "new.safetensors"), "--data", str(place.data)]
    refused(main(["train", place.arch, *out, *options]), *words)


def test_commands_that_do_not_exist_or_lack_arguments(refused) -> None:
    refused(main(["frobnicate"]), "frobnicate")
    refused(main(["fuse"]), "CHECKPOINT", "depfuse fuse --help")
    refused(main(["train", "digits_resnet"]), "--out")


# --- errors ----------------------------------------------------------------------------------------


def of_a_network_that(place: Place, does: str) -> list[str]:
    """Arguments for a parent whose forward pass does something first."""
    file = place.folder / "other.py"
    first = f"lambda *_: {does}"
    file.write_text(
        f"{NETWORK}\ndef other():\n    network = tiny()\n    network.register_forward_pre_hook({first})\n"
        "    return network\n"
    )
    place.write_parent(place.parents[0], 0, f"{file}:other")
    return [str(place.parents[0]), *trust(place.parents[0])]


def test_warnings_are_one_line(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    warns = """__import__("warnings").warn("first line\\nsecond line", __import__("depfuse").errors.DepfuseWarning)"""
    assert main(["eval", *of_a_network_that(place, warns), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "depfuse: warning: first line second line\n")


def test_mistakes_in_a_program_keep_their_traceback(place: Place) -> None:
    late = "1 / 0 if len(_[1][0]) > 2 else None"  # once it has been seen to run
    with pytest.raises(ZeroDivisionError):
        main(["eval", *of_a_network_that(place, late)])


def test_interruption_is_code_130(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", *of_a_network_that(place, "__import__('_thread').interrupt_main()")]) == 130
    said = capsys.readouterr().err
    lost = "what was computed is lost, nothing was written, and the same command begins anew"
    assert re.fullmatch(rf"depfuse: interrupted while reading networks and data, 0:00:0\d so far: {lost}\n", said)


def test_nothing_is_left_when_a_file_cannot_be_finished(place: Place, refused, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    report = place.folder / "report.json"
    refused(place.fuse("--report", report, "--plot", place.folder / "path.png"), "No space left on device")


def test_a_network_of_some_classes_is_evaluated_on_their_images(tmp_path, capsys):
    few, many = tmp_path / "few.safetensors", tmp_path / "many.safetensors"
    for path, labels, count in ((few, "5-7", 3), (many, "0-4", 5)):
        train = ["train", f"digits_resnet(width=0.25,classes={count})", "--data", "digits", "--labels", labels]
        assert main([*train, "--epochs", "2", "--out", str(path), "--quiet"]) == 0
    accuracy = read_checkpoint(few).card.metrics["accuracy"]  # of the images of its classes
    capsys.readouterr()

    def evaluated(*words):
        assert main(["eval", str(few), "--data", "digits", *words]) == 0
        shown = capsys.readouterr()
        assert "knows 3 of the 10 classes of digits: " in " ".join(shown.err.split())
        return " ".join(shown.out.split())

    said = evaluated()
    assert f"{accuracy:.2%}".replace("%", " %") in said
    assert evaluated("--classes", "5-7") == said
    assert evaluated("--classes", "7,6,5") != said  # outputs in another order
    assert main(["eval", str(few), str(many), "--data", "digits"]) == 2
    assert "know different classes of digits: run them apart" in " ".join(capsys.readouterr().err.split())


def test_numbers_on_a_card_say_nothing_of_the_named_classes_of_other_data(tmp_path, capsys):
    few, data = tmp_path / "few.safetensors", tmp_path / "named.npz"
    train = ["train", "digits_resnet(width=0.25,classes=3)", "--data", "digits", "--labels", "0-2", "--epochs", "1"]
    assert main([*train, "--out", str(few), "--quiet"]) == 0
    names = np.array(["ant", "bee", "cow", "dog"])[np.arange(40) % 4]
    images = np.random.default_rng(0).integers(0, 255, (40, 8, 8)).astype(np.uint8)
    np.savez(data, x_train=images, y_train=names, x_test=images, y_test=names)
    assert main(["eval", str(few), "--data", str(data)]) == 2
    assert "--classes" in capsys.readouterr().err
    assert main(["eval", str(few), "--data", str(data), "--classes", "cow,ant,dog"]) == 0
    assert "knows 3 of the 4 classes" in " ".join(capsys.readouterr().err.split())


def test_numbers_on_cards_do_not_choose_among_the_named_classes_of_other_data(tmp_path, capsys, monkeypatch):
    """Parents of digits 0 to 2 and 3 to 5 know no class of a folder by its place; of classes called 0 ... 5 they do."""
    monkeypatch.chdir(tmp_path)
    train = ["train", "digits_resnet(width=0.25,classes=3)", "--data", "digits", "--epochs", "1", "--quiet"]
    for name, labels in (("a", "0-2"), ("b", "3-5")):
        assert main([*train, "--labels", labels, "--out", f"{name}.safetensors"]) == 0
    images = np.random.default_rng(0).integers(0, 255, (60, 8, 8)).astype(np.uint8)
    words, numbers = ("ant", "bee", "cow", "dog", "elk", "fox"), ("00", "1", "02", "3", "04", "5")
    for file, names in (("words.npz", words), ("few.npz", words[:3]), ("numbers.npz", numbers)):
        labels = np.array(names)[np.arange(60) % len(names)]
        np.savez(file, x_train=images, y_train=labels, x_test=images, y_test=labels)

    def fused(data, *more):
        command = ["fuse", "a.safetensors", "b.safetensors", "--data", data, "--preset", "fast", *more, "--quiet"]
        return main([*command, "--out", "c.safetensors"])

    def names():
        return read_checkpoint(Path("c.safetensors")).card.names

    capsys.readouterr()
    for data in ("words.npz", "few.npz"):
        assert fused(data) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert f"a.safetensors knows classes 0, 1, 2 of digits, and nothing says which classes of {data}" in said
        assert "--classes" in said
    assert fused("words.npz", "--classes", "fox,ant,bee", "--classes", "cow,dog,elk") == 0
    assert names() == words
    assert fused("words.npz", "--classes", "0-2", "--classes", "3-5") == 0
    assert fused("numbers.npz") == 0
    assert names() == tuple(sorted(numbers))
    known = [of_card(read_checkpoint(Path(f"{name}.safetensors")).card, load_data("numbers.npz")) for name in "ab"]
    assert known == [numbers[:3], numbers[3:]]
    assert fused("digits", "--classes", "0-4", "--classes", "5-9") == 2  # three outputs
