"""Files as training tools leave them: the network in them is found by its own names, and what was chosen is said."""

from __future__ import annotations

import argparse
import copy
import functools
import io
import json
import pickle
import tarfile
import types
import warnings
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from depfuse.errors import CheckpointError, DepfuseWarning
from depfuse.io.checkpoint import read_checkpoint, state_digest
from depfuse.io.inert import Record, read_inert
from depfuse.io.into_network import load_into
from depfuse.io.load import load
from depfuse.io.torch_archives import read_archive
from depfuse.models import build_network

ARCH = "digits_resnet(width=0.25)"
State = Mapping[str, Tensor]


@pytest.fixture
def own() -> nn.Module:
    """The network that is asked for, with random weights."""
    return build_network(ARCH)


@pytest.fixture
def wanted() -> dict[str, Tensor]:
    """The weights to be found, each tensor unlike those of `own`."""
    torch.manual_seed(1)
    return {key: value + 1 for key, value in build_network(ARCH).state_dict().items()}


def prefixed(prefix: str, state: State) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def loaded(own: nn.Module, path: Path, key: str | None = None) -> tuple[dict[str, Tensor], list[str]]:
    """What a network holds after a file was loaded into it, and what was said."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_into(own, read_checkpoint(path, key))
    return own.state_dict(), [str(one.message) for one in caught if issubclass(one.category, DepfuseWarning)]


def assert_same(found: State, wanted: State) -> None:
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert torch.equal(found[key], value), key


def without_counters(state: State) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


def within(prefix: str, state: State, words: str) -> dict[str, Tensor]:
    """Put words into every name after its first part."""
    named = {}
    for key, value in state.items():
        first, _, rest = key.partition(".")
        named[f"{prefix}{first}.{words}{rest}"] = value
    return named


@pytest.mark.parametrize(
    "prefix",
    [
        *("module.", "_orig_mod.", "model.", "net.", "backbone.", "encoder.", "module.model.", "model._orig_mod."),
        *("_forward_module.model.", "learner.student.net.", "0.", "_fsdp_wrapped_module.", "generator.module."),
    ],
)
def test_any_common_prefix_is_passed_over(tmp_path: Path, own: nn.Module, wanted: State, prefix: str) -> None:
    for content in (prefixed(prefix, wanted), {"state_dict": prefixed(prefix, wanted), "epoch": 3}):
        found, said = loaded(own, saved(tmp_path / "net.pt", content))
        assert_same(found, wanted)
        assert len(said) == (not {*prefix.split(".")} <= {"", "module", "_orig_mod"})
        assert all(f"passed over {prefix.rstrip('.').replace('.', ', ')} in the names" in line for line in said)


@pytest.mark.parametrize("words", ["_fsdp_wrapped_module.", "_orig_mod.", "_checkpoint_wrapped_module.module."])
def test_wrappers_anywhere_are_passed_over(tmp_path: Path, own: nn.Module, wanted: State, words: str) -> None:
    found, _ = loaded(own, saved(tmp_path / "net.pt", within("model.", wanted, words)))
    assert_same(found, wanted)
    some = {key: value for key, value in wanted.items() if key.startswith("layer")}
    mixed = {**{key: value for key, value in wanted.items() if key not in some}, **within("", some, words)}
    assert_same(loaded(own, saved(tmp_path / "net.pt", mixed))[0], wanted)


@pytest.mark.parametrize("counters", [True, False])
@pytest.mark.parametrize("form", ["npz", "list"])
def test_arrays_without_names_are_taken_in_order(
    tmp_path: Path, own: nn.Module, wanted: State, form: str, counters: bool
) -> None:
    values = list((wanted if counters else without_counters(wanted)).values())
    path = tmp_path / "round.npz"
    if form == "npz":
        np.savez(path, *[value.numpy() for value in values])
    else:
        saved(path, {"parameters": values, "round": 3})
    found, said = loaded(own, path)
    assert_same(without_counters(found), without_counters(wanted))
    assert f"its {len(values)} arrays have no names, and are taken in the order" in said[0]
    np.savez(path, *[value.numpy() for value in reversed(values)])
    with pytest.raises(CheckpointError, match="does not fit"):
        loaded(own, path)


def test_counts_of_profilers_are_left_out(tmp_path: Path, own: nn.Module, wanted: State) -> None:
    counts = {"conv1.total_ops": torch.ones(1), "layer1.total_params": torch.ones(1), "total_ops": torch.ones(1)}
    assert_same(loaded(own, saved(tmp_path / "net.pt", {**wanted, **counts}))[0], wanted)


def test_what_is_no_whole_network_says_what_it_is(tmp_path: Path, own: nn.Module, wanted: State) -> None:
    adapter = {
        "base_model.model.fc.lora_A.weight": torch.ones(2, 3),
        "base_model.model.fc.lora_B.weight": torch.ones(3, 2),
    }
    with pytest.raises(CheckpointError, match=r"an adapter \(LoRA\), .*: put it into that one"):
        loaded(own, saved(tmp_path / "adapter.pt", adapter))
    divided = {key: torch.ones(0) if key.endswith("weight") else value for key, value in wanted.items()}
    with pytest.raises(CheckpointError, match=r"has no numbers for .*: several processes have a part each"):
        loaded(own, saved(tmp_path / "rank0.pt", {"module": divided}))
    folder = tmp_path / "deepspeed"
    (folder / "global_step10").mkdir(parents=True)
    saved(folder / "global_step10" / "mp_rank_00_model_states.pt", {"module": dict(wanted)})
    with pytest.raises(CheckpointError, match="a checkpoint of DeepSpeed: give its mp_rank_00"):
        loaded(own, folder)
    with tarfile.open(tmp_path / "net.tar", "w") as archive:
        archive.add(saved(tmp_path / "net.pt", wanted), "net.pt")
    with pytest.raises(CheckpointError, match="is a tar archive: unpack it"):
        loaded(own, tmp_path / "net.tar")


def test_a_network_that_is_wrapped_itself_takes_plain_names(tmp_path: Path, own: nn.Module, wanted: State) -> None:
    class Lightning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.DataParallel(own)

    for prefix in ("", "module.", "net."):
        found, _ = loaded(Lightning(), saved(tmp_path / "net.pt", prefixed(prefix, wanted)))
        assert_same(found, prefixed("model.module.", wanted))


def test_average_counters_losses_and_metrics_are_left_out_and_said(
    tmp_path: Path, own: nn.Module, wanted: State
) -> None:
    averaged = AveragedModel(build_network(ARCH))
    averaged.module.load_state_dict(wanted)
    found, (said,) = loaded(own, saved(tmp_path / "swa.pt", averaged.state_dict()))
    assert_same(found, wanted)
    assert "left out n_averaged, which the network does not have" in said
    lightning = {**prefixed("net.", wanted), "criterion.weight": torch.ones(10), "val_acc.tp": torch.zeros(10)}
    found, (said,) = loaded(own, saved(tmp_path / "last.ckpt", {"state_dict": lightning}))
    assert_same(found, wanted)
    assert said.endswith(
        "passed over net in the names of its weights; left out criterion.weight, val_acc.tp, which the network does"
        " not have"
    )
    profiled = dict(wanted)
    for layer in {key.rpartition(".")[0] for key in wanted}:
        profiled |= {f"{layer}.total_ops": torch.zeros(1).double(), f"{layer}.total_params": torch.zeros(1).double()}
    found, (said,) = loaded(own, saved(tmp_path / "thop.pt", {**profiled, "train_loss.weight": torch.ones(10)}))
    assert_same(found, wanted)
    assert "total_ops" in said


@pytest.mark.parametrize("name", ["linear2.bias", "logit_scale", "layer1.scale"])
def test_weights_that_a_network_does_not_have_are_not_left_out(
    tmp_path: Path, own: nn.Module, wanted: State, name: str
) -> None:
    for prefix in ("", "model."):
        path = saved(tmp_path / "net.pt", prefixed(prefix, {**wanted, name: torch.ones(1)}))
        with pytest.raises(CheckpointError, match=f"{name} is left over"):
            load_into(own, read_checkpoint(path))


@pytest.mark.parametrize(
    "keys",
    [
        *("state_dict_ema", "ema_state_dict", "model_ema", "params", "weights", "network", "network_weights"),
        *("student", "model_state", "trainer.model.weights", "callbacks.EMA.state.shadow", "models.0"),
    ],
)
def test_weights_are_found_under_any_key_at_any_depth(tmp_path: Path, own: nn.Module, wanted: State, keys: str) -> None:
    content: Any = dict(wanted)
    for key in reversed(keys.split(".")):
        content = [content] if key == "0" else {"epoch": 1, key: content, "lr": [0.1]}
    path = saved(tmp_path / "net.pth", {**content, "optimizer": {"state": {0: {"exp_avg": torch.zeros(9)}}}})
    assert_same(loaded(own, path)[0], wanted)
    assert_same(loaded(own, path, keys)[0], wanted)


@pytest.mark.parametrize(
    ("other", "taken", "why"),
    [
        ("params", "params_ema", "as the average of a training's steps"),
        ("state_dict", "state_dict_ema", "as the average of a training's steps"),
        ("model", "ema.model", "as the average of a training's steps"),
        ("student", "teacher", "as the teacher"),
        ("last", "best_state_dict", "as the best of a training"),
        ("second", "first", "as the first"),
        ("optimizer.exp_avg", "net", "as the first"),
    ],
)
def test_of_several_sets_the_choice_is_said_and_a_key_makes_it(
    tmp_path: Path, own: nn.Module, wanted: State, other: str, taken: str, why: str
) -> None:
    rest = {key: value * 2 for key, value in wanted.items()}

    def nested(path: str, state: State) -> dict[str, Any]:
        content: Any = dict(state)
        for key in reversed(path.split(".")):
            content = {key: content}
        return content  # type: ignore[no-any-return]

    order = (nested(taken, wanted), nested(other, rest))
    content = {**order[0], **order[1]} if why.endswith("first") and "." not in other else {**order[1], **order[0]}
    path = saved(tmp_path / "net.pth", content)
    found, (said,) = loaded(own, path)
    assert_same(found, wanted)
    assert f"took {taken} {why}" in said
    assert f"not {other}, which fit too (`key=...` chooses)" in said
    for key, state in ((taken, wanted), (other, rest)):
        found, said = loaded(own, path, key)
        assert_same(found, state)
        assert said == []


@pytest.mark.parametrize(("above", "key"), [("", "."), ("state_dict", "state_dict")])
def test_an_average_within_the_network_s_own_names_is_said_and_a_key_takes_them(
    tmp_path: Path, own: nn.Module, wanted: State, above: str, key: str
) -> None:
    averaged = {name: value * 2 for name, value in wanted.items()}
    state = {**wanted, **{f"ema_model.{name}": value for name, value in averaged.items()}}
    path = saved(tmp_path / "net.ckpt", {above: state} if above else state)
    average = f"{above}.ema_model".strip(".")
    found, (said,) = loaded(own, path)
    assert_same(found, averaged)
    assert f"took {average} as the average of a training's steps, not {above or 'the top'}, which fit too" in said
    assert f"(`key={'...' if above else '.'}` chooses)" in said
    assert "left out" not in said
    for chosen, state in ((key, wanted), (average, averaged)):
        found, said = loaded(own, path, chosen)
        assert_same(found, state)
        assert said == []


def test_an_average_whose_batch_norm_has_seen_nothing_is_not_preferred(tmp_path: Path) -> None:
    own = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    averaged = copy.deepcopy(own).state_dict()
    own(torch.rand(8, 3, 8, 8))
    trained = own.state_dict()
    path = saved(
        tmp_path / "net.ckpt", {"callbacks": {"SWA": {"average_model_state": averaged}}, "state_dict": trained}
    )
    found, (said,) = loaded(copy.deepcopy(own), path)
    assert_same(found, trained)
    assert "took state_dict as BatchNorm has seen nothing in callbacks.SWA.average_model_state, not" in said
    assert_same(read_checkpoint(path).state, trained)
    averaged["1.num_batches_tracked"] = torch.tensor(3)
    path = saved(
        tmp_path / "net.ckpt", {"callbacks": {"SWA": {"average_model_state": averaged}}, "state_dict": trained}
    )
    assert_same(loaded(copy.deepcopy(own), path)[0], averaged)


def test_the_digest_is_that_of_what_was_taken(tmp_path: Path, own: nn.Module, wanted: State) -> None:
    path = saved(tmp_path / "net.pth", {"big": {f"x{n}": torch.ones(1) for n in range(200)}, "net": wanted})
    read = read_checkpoint(path).fitted_to(own.state_dict())
    assert read.digest == state_digest(wanted)
    assert read.weights is None


def test_a_key_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path, wanted: State) -> None:
    path = saved(tmp_path / "net.pth", {"params": wanted, "params_ema": wanted})
    with pytest.raises(CheckpointError, match=r"no weights under the key ema: it holds params, params_ema$"):
        read_checkpoint(path, "ema")
    with pytest.raises(CheckpointError, match=r"all its tensors are at the top, under no key$"):
        read_checkpoint(saved(path, dict(wanted)), "ema")


def test_a_file_where_nothing_fits_names_what_it_holds(tmp_path: Path, own: nn.Module) -> None:
    path = saved(tmp_path / "net.pth", {"student": {"w": torch.zeros(3)}, "teacher": {"w": torch.zeros(3)}})
    with pytest.raises(CheckpointError, match="missing and w is left over; it holds student, teacher; check"):
        load_into(own, read_checkpoint(path))


@pytest.mark.parametrize("shape", [(1,), (0,), ()])
def test_counters_of_other_shapes_are_read(
    tmp_path: Path, own: nn.Module, wanted: State, shape: tuple[int, ...]
) -> None:
    state = {key: torch.full(shape, 7) if key.endswith("tracked") else value for key, value in wanted.items()}
    found, _ = loaded(own, saved(tmp_path / "net.pt", state))
    assert found["bn1.num_batches_tracked"].item() == (0 if shape == (0,) else 7)
    assert_same(
        {k: v for k, v in found.items() if "tracked" not in k}, {k: v for k, v in wanted.items() if "tracked" not in k}
    )


def test_names_may_have_any_order_and_parts_of_their_own(tmp_path: Path, own: nn.Module, wanted: State) -> None:
    nested: dict[str, Any] = {}
    for key in sorted(wanted, reverse=True):
        layer, _, name = key.rpartition(".")
        nested.setdefault(layer, {})[name] = wanted[key]
    assert_same(loaded(own, saved(tmp_path / "net.pt", nested))[0], wanted)


def test_fused_batch_norm_is_named(tmp_path: Path, own: nn.Module, wanted: State) -> None:
    fused = {key: value for key, value in wanted.items() if ".bn" not in key and not key.startswith("bn1")}
    fused |= {"conv1.bias": torch.ones(5), "layer1.conv1.bias": torch.ones(5)}
    norms = {name for name, module in own.named_modules() if isinstance(module, nn.BatchNorm2d)}
    fused = {key: value for key, value in fused.items() if key.rpartition(".")[0] not in norms}
    with pytest.raises(CheckpointError, match="its BatchNorm seems to be fused into its convolutions"):
        load_into(own, read_checkpoint(saved(tmp_path / "net.pt", fused)))


# Weight and spectral norm


def normed(new: bool, spectral: bool) -> nn.Module:
    functions = nn.utils.parametrizations if new else nn.utils
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        norm = functions.spectral_norm if spectral else functions.weight_norm
        return nn.Sequential(norm(nn.Conv2d(1, 4, 3)), nn.ReLU(), nn.Sequential(norm(nn.Conv2d(4, 2, 3))))


@pytest.mark.parametrize("spectral", [False, True])
@pytest.mark.parametrize("new", [False, True])
def test_old_and_new_norms_are_the_same_function(tmp_path: Path, new: bool, spectral: bool) -> None:
    source, target = normed(not new, spectral).eval(), normed(new, spectral).eval()
    images = torch.randn(2, 1, 6, 6)
    source.train()(images)  # singular vectors of its own
    path = saved(tmp_path / "net.pt", {"state_dict": prefixed("model.", source.eval().state_dict())})
    loaded(target, path)
    torch.testing.assert_close(target(images), source(images), rtol=1e-6, atol=1e-6)


# Files with other things beside the tensors


class Config(dict):
    """A dict of a class of its own, as OmegaConf and mmcv have."""


class Trainer:
    def __init__(self, network: nn.Module) -> None:
        self.network, self.itself, self.path = network, self, Path("data")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    "beside",
    [
        argparse.Namespace(lr=0.1, data=Path("data")),
        Config(lr=0.1),
        functools.partial(torch.relu, inplace=True),
        defaultdict(list, {"a": [1]}),
        {1, (2, 3), frozenset({4})},
        np.array([{}, "text"], dtype=object),
        np.array(["text"]),
        torch.device("cpu"),
        torch.float16,
        torch.Size([3, 2]),
        torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1),
        types.SimpleNamespace(deep=[OrderedDict(a=torch.Generator)]),
        np.datetime64("2020-01-01"),
        range(3),
        1j,
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_things_beside_the_tensors_are_no_obstacle(
    tmp_path: Path, own: nn.Module, wanted: State, beside: object, protocol: int, legacy: bool
) -> None:
    path = tmp_path / "net.pth"
    torch.save(
        {"args": beside, "model": wanted}, path, _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol
    )
    assert_same(loaded(own, path)[0], wanted)
    path.write_bytes(pickle.dumps({"args": str(beside), "model": wanted}))
    assert_same(loaded(own, path)[0], wanted)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrap", [lambda net: net, nn.DataParallel, Trainer, lambda net: {"model": net, "ema": None}])
def test_a_whole_module_gives_its_tensors_by_name(
    tmp_path: Path, own: nn.Module, wanted: State, legacy: bool, wrap: Callable[[nn.Module], Any]
) -> None:
    network = build_network(ARCH)
    network.load_state_dict(wanted)
    network.register_buffer("scratch", torch.ones(3), persistent=False)
    torch.save(wrap(network), tmp_path / "whole.pt", _use_new_zipfile_serialization=not legacy)
    assert_same(loaded(own, tmp_path / "whole.pt")[0], wanted)


def test_a_torchscript_program_gives_its_tensors_by_name(tmp_path: Path, own: nn.Module, wanted: State) -> None:
    network = build_network(ARCH).eval()
    network.load_state_dict(wanted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(network, torch.zeros(1, 1, 8, 8)), tmp_path / "net.pt")
    found, _ = loaded(own, tmp_path / "net.pt")
    assert_same(
        {k: v for k, v in found.items() if "tracked" not in k}, {k: v for k, v in wanted.items() if "tracked" not in k}
    )


@pytest.mark.parametrize("legacy", [False, True])
def test_inert_reading_gives_torchs_own_tensors(tmp_path: Path, legacy: bool) -> None:
    base = torch.arange(24.0)
    tensors = {str(dtype): torch.ones(2, 3).to(dtype) for dtype in (torch.float16, torch.bfloat16, torch.float64)}
    tensors |= {str(dtype): torch.tensor([0, 1]).to(dtype) for dtype in (torch.int8, torch.int64, torch.bool)}
    tensors |= {"complex": torch.tensor([1 + 2j]), "view": base[4:16].reshape(3, 4).T, "part": base[::5]}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 3), "parameter": nn.Parameter(torch.ones(2))}
    if not legacy:
        tensors["uint16"] = torch.tensor([1, 2]).to(torch.uint16)
    path = tmp_path / "net.pt"
    torch.save(tensors, path, _use_new_zipfile_serialization=not legacy)
    found = read_archive(path)
    for key, value in torch.load(path, weights_only=True).items():
        assert found[key].dtype == value.dtype, key
        assert torch.equal(found[key], value), key


def test_records_do_nothing() -> None:
    content = pickle.dumps([functools.partial(print, "x"), Path("a/b"), argparse.Namespace(lr=0.1)])
    (partial, path, arguments), _ = read_inert(io.BytesIO(content), Path("x"), len(content))
    assert all(isinstance(one, Record) for one in (partial, path, arguments))
    assert partial.kind == "functools.partial"
    assert arguments.attributes == {"lr": 0.1}


def bomb(depth: int) -> object:
    """Ten times ten times ten ... of one list."""
    content: Any = [torch.ones(1)]
    for _ in range(depth):
        content = [content] * 10
    return content


def deep(depth: int) -> object:
    content: Any = {"weight": torch.ones(1)}
    for _ in range(depth):
        content = {"a": content}
    return content


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (bomb(6), "holds more than 500,000 values"),
        (deep(150), "nested too deeply"),
        ({"a." * 300 + "b": torch.ones(1)}, "nested too deeply"),
    ],
)
def test_files_beyond_bounds_are_one_sentence(tmp_path: Path, content: object, sentence: str) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        read_checkpoint(saved(tmp_path / "net.pt", content))


def test_a_file_that_holds_itself_is_read(tmp_path: Path) -> None:
    content: dict[str, Any] = {"weight": torch.ones(1), "args": argparse.Namespace()}
    content["args"].itself = content
    content["list"] = [content]
    for read in (saved(tmp_path / "a.pt", content), tmp_path / "b.pkl"):
        if read.suffix == ".pkl":
            read.write_bytes(pickle.dumps(content))
        assert read_checkpoint(read).state["weight"].tolist() == [1]


# Folders, parts, other formats


def write_folder(folder: Path, files: Mapping[str, State], index: str | None = None) -> Path:
    """A folder as `save_pretrained` writes it."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["Net"], "num_labels": 10}))
    for name, state in files.items():
        if name.endswith(".safetensors"):
            safetensors.torch.save_file(dict(state), folder / name, metadata={"format": "pt"})
        else:
            torch.save(dict(state), folder / name)
    if index:
        named = {key: name for name, state in files.items() for key in state}
        (folder / index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": named}))
    return folder


def halves(state: State) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    keys = list(state)
    return {k: state[k] for k in keys[: len(keys) // 2]}, {k: state[k] for k in keys[len(keys) // 2 :]}


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.safetensors"])
def test_a_folder_with_one_file_of_weights_is_read(tmp_path: Path, own: nn.Module, wanted: State, name: str) -> None:
    folder = write_folder(tmp_path / "saved", {name: wanted, "training_args.bin": {}, "optimizer.pt": wanted})
    assert_same(loaded(own, folder)[0], wanted)


@pytest.mark.parametrize("ending", [".safetensors", ".bin"])
def test_parts_are_read_by_their_index(tmp_path: Path, own: nn.Module, wanted: State, ending: str) -> None:
    first, second = halves(wanted)
    parts = {f"model-0000{n}-of-00002{ending}": state for n, state in ((1, first), (2, second))}
    folder = write_folder(tmp_path / "saved", parts, f"model{ending}.index.json")
    for path in (folder, folder / f"model{ending}.index.json"):
        assert_same(loaded(own, path)[0], wanted)
    (folder / f"model-00002-of-00002{ending}").unlink()
    with pytest.raises(CheckpointError, match=f"names 2 files .* and model-00002-of-00002{ending} is not there"):
        read_checkpoint(folder)


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "a/b.safetensors", "..", "c\\d.bin"])
def test_an_index_names_nothing_outside_its_folder(tmp_path: Path, wanted: State, name: str) -> None:
    safetensors.torch.save_file(dict(wanted), tmp_path / "other.safetensors")
    folder = write_folder(tmp_path / "saved", {}, None)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="not in its own folder: no such file is opened"):
        read_checkpoint(folder)


@pytest.mark.parametrize("content", ["", "[]", '{"weight_map": 3}', '{"weight_map": {}}', "[" * 100_000])
def test_an_index_that_is_none_is_one_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match="index"):
        read_checkpoint(tmp_path)


def test_folders_with_several_files_or_of_distributed_parts_are_named(tmp_path: Path, wanted: State) -> None:
    folder = write_folder(tmp_path / "runs", {"a.pt": wanted, "b.pt": wanted})
    with pytest.raises(CheckpointError, match=r"several files of weights \(a\.pt, b\.pt\): name one of them"):
        read_checkpoint(folder)
    parts = write_folder(tmp_path / "dcp", {})
    (parts / ".metadata").touch()
    (parts / "__0_0.distcp").touch()
    with pytest.raises(CheckpointError, match="dcp_to_torch"):
        read_checkpoint(parts)


def test_arrays_by_name_are_read(tmp_path: Path, own: nn.Module, wanted: State) -> None:
    np.savez(tmp_path / "net.npz", **{key: value.numpy() for key, value in wanted.items()}, names=np.array(["a"]))
    assert_same(loaded(own, tmp_path / "net.npz")[0], wanted)
    np.savez(tmp_path / "evil.npz", weight=np.array([{}], dtype=object))
    with pytest.raises(CheckpointError, match="cannot be read as arrays of numbers"):
        read_checkpoint(tmp_path / "evil.npz")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("net.onnx", b"\x08\x08\x12\x07pytorch", "is an ONNX program"),
        ("net.h5", b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
        ("net.gguf", b"GGUF\x03\x00\x00\x00", "is a GGUF file"),
        ("net.pt.gz", b"\x1f\x8b\x08\x00", r"compressed \(gzip\): unpack it first"),
        ("net.pt.xz", b"\xfd7zXZ\x00", r"compressed \(xz\)"),
        ("net.npy", b"\x93NUMPY\x01\x00", "is one array"),
        ("net.pt", b"version https://git-lfs.github.com/spec/v1\noid", "is a pointer of Git LFS"),
        ("net.pth", b"\n<!DOCTYPE html><html>", "is a web page"),
        ("net.tflite", b"\x1c\x00\x00\x00TFL3", "is a TensorFlow Lite program"),
        ("net.msgpack", b"\xde\x00\x10", "is a file of Flax"),
    ],
)
def test_other_files_are_named_with_what_to_do(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=sentence):
        read_checkpoint(tmp_path / name)


def test_tensors_without_numbers_are_named(tmp_path: Path, own: nn.Module, wanted: State) -> None:
    path = saved(tmp_path / "net.pt", {key: tensor.to("meta") for key, tensor in wanted.items()})
    with pytest.raises(CheckpointError, match=r"is no plain tensor .*without numbers"):
        read_checkpoint(path).fitted_to(own.state_dict())


def test_exported_programs_and_other_archives_are_named(tmp_path: Path) -> None:
    for name, sentence in (("archive/archive_format", "is an exported program"), ("net/net.pt", "zip archive without")):
        with zipfile.ZipFile(tmp_path / "net.pt2", "w") as archive:
            archive.writestr(name, "pt2")
        with pytest.raises(CheckpointError, match=sentence):
            read_checkpoint(tmp_path / "net.pt2")


def test_a_network_is_loaded_by_name_and_key(tmp_path: Path, wanted: State) -> None:
    rest = {key: value * 2 for key, value in wanted.items()}
    path = saved(tmp_path / "net.pth", {"params": rest, "params_ema": dict(wanted)})
    assert_same(load(path, ARCH, key="params").state_dict(), rest)
    with pytest.warns(DepfuseWarning, match="took params_ema"):
        assert_same(load(path, ARCH).state_dict(), wanted)
