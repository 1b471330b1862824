"""Calibration data in every form that people have them become the same loader."""

from __future__ import annotations

import itertools
from collections import UserDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from depfuse.data import Loader, Split
from depfuse.data.batches import as_loader
from depfuse.data.inputs import Ragged, count_samples, join_samples, take_samples
from depfuse.errors import DataError, DepfuseWarning
from depfuse.networks.forward import Called, run_network

IMAGES = torch.randn(30, 3, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
LABELS = torch.arange(30) % 4


class Plain(nn.Module):
    """One image in, a row out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).mean((2, 3))


class Pair(nn.Module):
    """An image and a row, and an option."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, dtype=torch.float32))

    def forward(self, image: Tensor, row: Tensor, scale: float = 1.0) -> Tensor:
        return scale * image.mean((2, 3)) * self.weight + row


class Images(Dataset[Any]):
    def __init__(self, samples: list[Any]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        return self.samples[index]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from zip(IMAGES, LABELS, strict=True)


@dataclass(frozen=True)
class Batch:
    """Images with their names."""

    image: Tensor
    ids: list[str]


class ArrayLike:
    """What pandas, h5py and others give."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.values


def endless() -> Iterator[Tensor]:
    yield from itertools.cycle(IMAGES.split(7))


def gathered(loader: Loader) -> Any:
    return join_samples([inputs for inputs, _ in loader])


SOURCES: dict[str, Any] = {
    "tensor": lambda: IMAGES,
    "array": IMAGES.numpy,
    "list of batches": lambda: list(IMAGES.split(7)),
    "list of arrays": lambda: [batch.numpy() for batch in IMAGES.split(7)],
    "list of images": lambda: list(IMAGES),
    "list of pairs": lambda: list(zip(IMAGES.split(7), LABELS.split(7), strict=True)),
    "mapping": lambda: {"x": IMAGES},
    "data set": lambda: TensorDataset(IMAGES, LABELS),
    "data loader": lambda: DataLoader(TensorDataset(IMAGES, LABELS), batch_size=8),
    "data loader with workers": lambda: DataLoader(TensorDataset(IMAGES), batch_size=8, num_workers=2),
    "stream": Stream,
    "generator": lambda: (batch for batch in IMAGES.split(11)),
    "dictionaries": lambda: ({"pixel_values": batch, "labels": torch.zeros(len(batch))} for batch in IMAGES.split(9)),
    "encodings": lambda: (UserDict({"x": batch, "label": torch.zeros(len(batch))}) for batch in IMAGES.split(9)),
    "loader": lambda: Loader(Split(IMAGES), batch_size=10),
    "inputs and labels": lambda: (IMAGES, LABELS),
    "inputs and rows of labels": lambda: (IMAGES.numpy(), np.eye(4)[LABELS]),
    "a tuple of batches": lambda: (IMAGES[:15], IMAGES[15:]),
    "generator of images": lambda: iter(IMAGES),
    "generator of pairs": lambda: zip(IMAGES, LABELS, strict=True),
    "data loader without batches": lambda: DataLoader(TensorDataset(IMAGES, LABELS), batch_size=None),
    "images in tuples": lambda: [((batch,), 0) for batch in IMAGES.split(7)],
    "data classes": lambda: [Batch(image=batch, ids=["a"]) for batch in IMAGES.split(7)],
    "dictionaries with numbers": lambda: [{"image": b, "index": torch.arange(len(b))} for b in IMAGES.split(7)],
    "what NumPy takes": lambda: ArrayLike(IMAGES.numpy()),
}


@pytest.mark.parametrize("form", SOURCES)
def test_every_form_of_the_same_images_is_the_same_loader(form: str) -> None:
    loader = as_loader(SOURCES[form](), Plain(), batch_size=10)
    assert loader.count == 30
    torch.testing.assert_close(gathered(loader), IMAGES, rtol=0, atol=0)
    assert [len(inputs) for inputs, _ in loader] == [10, 10, 10]


def test_labels_come_with_pairs_and_not_with_inputs_alone() -> None:
    loader = as_loader(DataLoader(TensorDataset(IMAGES, LABELS), batch_size=8), Plain())
    assert torch.equal(loader.required_labels, LABELS)
    with pytest.raises(DataError, match="labels are needed"):
        _ = as_loader(IMAGES, Plain()).required_labels


def test_of_an_endless_source_as_many_are_taken_as_are_wanted() -> None:
    loader = as_loader(endless(), Plain(), images=50)
    assert loader.count == 50
    torch.testing.assert_close(gathered(loader), torch.cat([IMAGES, IMAGES])[:50], rtol=0, atol=0)


def test_of_more_samples_than_wanted_some_are_drawn_by_the_seed() -> None:
    first, again, other = (gathered(as_loader(IMAGES, Plain(), images=12, seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert all(any(torch.equal(image, one) for one in IMAGES) for image in first)


def test_what_takes_more_than_a_quarter_of_the_free_memory_is_cut_and_said() -> None:
    free = 4 * IMAGES[:11].nbytes
    with pytest.warns(DepfuseWarning, match="14 of 2000 calibration samples are used"):
        loader = as_loader(endless(), Plain(), room=free // 4)
    assert loader.count == 14  # batches of 7: the one that is too much is the last


def test_a_loader_that_fills_one_memory_again_and_again_is_copied() -> None:
    memory = torch.empty(10, 3, 6, 5, dtype=torch.float32)

    def batches() -> Iterator[Tensor]:
        for batch in IMAGES.split(10):
            yield memory.copy_(batch)

    torch.testing.assert_close(gathered(as_loader(batches(), Plain())), IMAGES, rtol=0, atol=0)


def test_inputs_are_of_the_networks_type_and_tokens_stay_numbers() -> None:
    assert gathered(as_loader(IMAGES.numpy().astype(np.float64), Plain())).dtype == torch.float32
    assert gathered(as_loader(IMAGES, Plain().double())).dtype == torch.float64
    tokens = torch.randint(0, 9, (20, 7))
    assert torch.equal(gathered(as_loader(tokens, nn.Embedding(9, 4))), tokens)


def test_pictures_become_numbers_between_zero_and_one() -> None:
    pictures = [Image.fromarray(np.full((4, 5, 3), 51 * number, np.uint8)) for number in range(6)]
    loader = as_loader(Images([(picture, 0) for picture in pictures]), Plain())
    found = gathered(loader)
    assert found.shape == (6, 3, 4, 5)
    torch.testing.assert_close(found[:, 0, 0, 0], torch.arange(6) / 5, check_dtype=False)
    assert as_loader(pictures, Plain()).count == 6


def test_several_inputs_are_those_that_forward_requires() -> None:
    rows = torch.randn(30, 3, dtype=torch.float32)
    for source in (
        DataLoader(TensorDataset(IMAGES, rows, LABELS), batch_size=8),
        [((IMAGES[:20], rows[:20]), LABELS[:20]), ((IMAGES[20:], rows[20:]), LABELS[20:])],
        [{"row": rows, "image": IMAGES, "labels": LABELS, "path": ["a"] * 30}],
    ):
        loader = as_loader(source, Pair(), batch_size=15)
        assert torch.equal(loader.required_labels, LABELS)
        found = torch.cat([run_network(Pair(), inputs) for inputs, _ in loader])
        torch.testing.assert_close(found, IMAGES.mean((2, 3)) + rows)


def test_a_function_of_the_users_is_given_whole_batches() -> None:
    batches = [{"a": {"picture": batch}, "names": ["x"] * len(batch)} for batch in IMAGES.split(10)]
    loader = as_loader(batches, Plain(), batch_size=6, call=lambda model, batch: model(batch["a"]["picture"]))
    model = Plain().eval()
    inputs = [batch for batch, _ in loader]
    assert all(isinstance(batch, Called) for batch in inputs)
    torch.testing.assert_close(torch.cat([run_network(model, batch) for batch in inputs]), model(IMAGES))
    assert not loader.pictures


def test_a_function_of_the_users_is_given_batches_of_their_own_class() -> None:
    batches = [Batch(image=batch, ids=["a"]) for batch in IMAGES.split(10)]
    loader = as_loader(batches, Plain(), batch_size=6, call=lambda model, batch: model(batch.image))
    model = Plain().eval()
    found = [run_network(model, inputs) for inputs, _ in loader]
    torch.testing.assert_close(torch.cat(found), model(IMAGES))
    assert [len(one) for one in found] == [6] * 5
    assert all(torch.equal(batch.image, given) for batch, given in zip(batches, IMAGES.split(10), strict=True))


@pytest.mark.parametrize("batches", [IMAGES, IMAGES.numpy(), [IMAGES[:20], IMAGES[20:]]])
def test_a_function_of_the_users_is_given_tensors(batches: Any) -> None:
    loader = as_loader(batches, Plain(), call=lambda model, batch: model(2 * batch))
    model = Plain().eval()
    torch.testing.assert_close(torch.cat([run_network(model, batch) for batch, _ in loader]), model(2 * IMAGES))


def test_batches_of_several_types_are_of_the_networks_and_empty_ones_are_passed_over() -> None:
    loader = as_loader([IMAGES[:10].double(), IMAGES[:0], IMAGES[10:].numpy()], Plain())
    assert torch.equal(loader.images, IMAGES)


class Scaled(nn.Module):
    """An image, and numbers that may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.scale = nn.Conv2d(3, 4, 3), nn.Linear(5, 4)

    def forward(self, image: Tensor, numbers: Tensor | None = None) -> Tensor:
        found = self.conv(image).mean((2, 3))
        return found if numbers is None else found * self.scale(numbers)


def test_inputs_beside_labels_are_all_given_though_some_may_be_left_out() -> None:
    images, numbers, labels = torch.rand(6, 3, 8, 8), torch.rand(6, 5), torch.arange(6)
    batches = [((images[part], numbers[part]), labels[part]) for part in (slice(0, 4), slice(4, 6))]
    samples = [((image, row), int(label)) for image, row, label in zip(images, numbers, labels, strict=True)]
    for data in (batches, samples, DataLoader(samples, batch_size=3)):
        loader = as_loader(data, Scaled())
        assert torch.equal(loader.images[0], images)
        assert torch.equal(loader.images[1], numbers)
        assert torch.equal(loader.labels, labels)
    views = as_loader([((images, images.flip(3)), labels)], Scaled())
    assert torch.equal(views.images, images)


def test_an_input_that_is_taken_by_its_name_alone_is_given_by_it() -> None:
    class Named(Plain):
        def forward(self, *, pixels: Tensor, labels: Any = None) -> Tensor:
            return super().forward(pixels)

    for source in (IMAGES, [{"pixels": IMAGES, "labels": LABELS}]):
        inputs, _ = next(iter(as_loader(source, Named())))
        assert torch.equal(inputs["pixels"], IMAGES)


def test_an_input_of_one_axis_with_its_label_is_a_sample() -> None:
    network = nn.Linear(7, 3)  # which takes one axis, too
    rows = torch.randn(20, 7, dtype=torch.float32)
    for source in ([(row, 0) for row in rows], iter(rows), list(rows)):
        assert torch.equal(gathered(as_loader(source, network)), rows)


def test_rows_without_channels_are_batches_of_a_network_that_adds_them() -> None:
    class Spectrum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x[:, None])).mean((2, 3))

    rows = torch.randn(20, 8, 8, dtype=torch.float32)
    for size in (1, 6):
        assert torch.equal(gathered(as_loader(DataLoader(rows, size), Spectrum())), rows)


@pytest.mark.filterwarnings("error")
def test_of_an_array_in_a_file_only_what_is_drawn_is_read(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", IMAGES.numpy())
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    found = gathered(as_loader(mapped, Plain(), images=12, seed=3))
    assert torch.equal(found, gathered(as_loader(IMAGES, Plain(), images=12, seed=3)))


def test_batches_of_several_shapes_are_kept_apart() -> None:
    sizes = [5, 7, 7, 5]
    batches = [{"tokens": torch.full((4, size), number)} for number, size in enumerate(sizes)]
    loader = as_loader(batches, Plain(), batch_size=8, call=lambda model, batch: batch["tokens"])
    shapes = [tuple(inputs.batch["tokens"].shape) for inputs, _ in loader]
    assert shapes == [(4, 5), (4, 7), (4, 7), (4, 5)]
    assert loader.count == 16
    assert [tuple(i.batch["tokens"].shape) for i, _ in loader.between(2, 14)] == [(2, 5), (4, 7), (4, 7), (2, 5)]


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 2)), min_size=1, max_size=6), st.data())
def test_parts_are_taken_as_one_tensor_would_be(parts: list[tuple[int, int]], data: st.DataObject) -> None:
    count = sum(size for size, _ in parts)
    numbers = torch.arange(count)
    pieces = torch.split(numbers, [size for size, _ in parts])
    whole = join_samples([{"n": n[:, None].expand(-1, width)} for n, (_, width) in zip(pieces, parts, strict=True)])
    assert count_samples(whole) == count
    index = torch.tensor(data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=8)))
    found = take_samples(whole, index)
    rows = found.parts if isinstance(found, Ragged) else [found]
    assert torch.equal(torch.cat([part["n"][:, 0] for part in rows]), numbers[index])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("photos/", "load_data"),
        (3, "are an int"),
        ([], "hold no batch"),
        (torch.zeros(1, 3, 6, 5), "1 calibration sample is too few"),
        (torch.tensor(3.0), "hold no batch"),
        ([{"before": IMAGES, "after": IMAGES}], "name them alike, or say how"),
        (["a.png"], "names of files, such as a.png"),
        ({"x": IMAGES, "y": LABELS[:3]}, r"arrays of \[3, 30\] samples"),
        ([{"x": IMAGES, "extra": None, "y": LABELS[:3]}], None),
        (Images([IMAGES[0], IMAGES[0, :, :2]]), "give them one shape"),
        (np.array(["a", "b"]), "holds no numbers"),
        ([object()], "a batch is an object"),
    ],
)
def test_what_cannot_be_taken_is_said(source: Any, message: str | None) -> None:
    if message is None:
        assert as_loader(source, Plain()).count == 30
        return
    with pytest.raises(DataError, match=message):
        as_loader(source, Plain())


def test_too_few_inputs_for_forward_are_named() -> None:
    with pytest.raises(DataError, match=r"1 entries, and the network takes 2 \(image, row\)"):
        as_loader([(IMAGES,)], Pair())
    with pytest.raises(DataError, match="tensors of"):
        as_loader([(IMAGES, IMAGES[:3, :, 0, 0])], Pair())


def test_targets_of_the_inputs_shape_are_no_inputs() -> None:
    targets = IMAGES + 1
    for scored in (False, True):
        for pair in ((IMAGES, targets), (IMAGES.numpy(), targets.numpy())):
            found = as_loader(pair, Plain(), scored=scored)
            torch.testing.assert_close(gathered(found), IMAGES, rtol=0, atol=0)
            assert not scored or torch.equal(found.split.labels, targets)
