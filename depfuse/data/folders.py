"""Images in folders: by part and class, by class, or just images, to any depth."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os.path import join
from pathlib import Path

import numpy as np

from depfuse.data.annotations import unread_annotations
from depfuse.data.image_files import find_images
from depfuse.data.images import SUFFIXES, is_hidden, is_image
from depfuse.data.masks import find_masks, load_masks
from depfuse.data.parts import KINDS, Part, data_set_of
from depfuse.data.preprocessing import Preprocessing
from depfuse.data.tensors import DataSet
from depfuse.errors import DataError, DepfuseWarning

PICTURES = ("images", "image", "imgs", "img", "jpegimages")
MASKS = ("masks", "mask", "annotations", "labels", "segmentationclass")
Wanted = Callable[[str], bool]  # by the name of a file


@dataclass(frozen=True)
class _Folder:
    """Images below a folder, in the order of their names; and by subfolder, where these are classes."""

    files: Sequence[str]
    classes: Sequence[str] = ()
    of_class: Sequence[int] = ()


def load_folder(root: Path, preprocessing: Preprocessing) -> DataSet:
    """Load a folder of images, many of which are decoded when they are needed.

    =============================================  =============================================
    what the folder holds                          what it is
    =============================================  =============================================
    train/CLASS/IMAGE, test/CLASS/IMAGE            training and test images with labels
    val/, valid/ or validation/ beside or for it   test images, where test/ has no labels or is not there
    train/IMAGE, or deeper                         training images without labels
    CLASS/IMAGE in two folders or more             images with labels, divided by seed
    images/ and masks/, also below train/, test/   images with labels of pixels, matched by the names of files
    IMAGE, or deeper                               training images without labels
    =============================================  =============================================

    Classes are in the order of their names. Hidden files and folders are skipped; links are followed.

    Raises
    ------
    DataError
        There are no images, one cannot be read, sizes differ and no size is given, or a class is tested and not
        trained.
    """
    children = {child.lower(): child for child in _subfolders(str(root))}
    parts = {children[name]: str(root / children[name]) for name in children if name in KINDS}
    said = False
    if (dense := _with_masks(root, parts)) is not None:
        return _dense(root, dense, preprocessing)
    if parts:
        least = 1 if _one_class(list(parts.values())) else 2
        train = {name: _by_class(place, least) for name, place in parts.items() if KINDS[name.lower()] == "train"}
        least = 1 if any(folder.classes for folder in train.values()) else 2
        tests = {name: _by_class(place, least) for name, place in parts.items() if name not in train}
        parts_by_name, whole = {**train, **tests}, None
        if unused := sorted(
            name for own, name in children.items() if own not in KINDS and _images_below(str(root / name), set())
        ):
            _say(f"{root}: the images of {', '.join(unused[:4])} are not used: train, val and test are")
    elif any(name in children for name in PICTURES) and any(name in children for name in MASKS):
        chosen = next(children[name] for name in PICTURES if name in children)
        masks = next(children[name] for name in MASKS if name in children)
        _say(
            f"{root}: the images of {chosen} are taken without labels: there are no masks in {masks}, and boxes are not"
            " read"
        )
        parts_by_name, whole = {}, _Folder(_images_below(str(root / chosen), set()))
        said = True
    else:
        parts_by_name, whole = {}, _by_class(str(root), exactly=True)
    folders = [*parts_by_name.values(), *([] if whole is None else [whole])]
    for name, folder in parts_by_name.items():
        if not folder.files and KINDS[name.lower()] == "train":
            raise DataError(f"{root} has no images under {name}/: it needs {name}/CLASS/*.png, or {name}/*.png")
    if not any(folder.files for folder in folders):
        raise DataError(
            f"{root} holds no images: it needs images, CLASS/IMAGE, or train/CLASS/IMAGE and test/CLASS/IMAGE, and"
            f" images end in {', '.join(sorted(SUFFIXES))}; or volumes, in .npy and .npz"
        )
    files = [file for folder in folders for file in folder.files]
    if not said and (unread := unread_annotations(root, files)) is not None:
        _say(unread)
    classes = _classes(root, parts_by_name, whole)
    images = find_images([folder.files for folder in folders], root, preprocessing.size, preprocessing.of_colour)
    made = [
        Part(own, _labels(folder, classes) if folder.classes and classes else None)
        for own, folder in zip(images, folders, strict=True)
    ]
    named = {name: part for name, part in zip(parts_by_name, made, strict=False) if len(part.images)}
    rest = made[-1] if whole is not None else None
    return data_set_of(str(root), named, rest, classes, preprocessing, by_name=classes is not None)


def find_files(root: Path, wanted: Wanted = is_image) -> dict[str, list[str]]:
    """List the files below a folder, whatever they show: those of train/ and of others in `KINDS`, or all as ""."""
    below = _subfolders(str(root))
    kinds = {KINDS[name.lower()]: name for name in below if name.lower() in KINDS}
    parts = {}
    if "train" in kinds:
        parts = {name: _images_below(str(root / name), set(), wanted) for name in kinds.values()}
    return {name: files for name, files in parts.items() if files} or {"": _images_below(str(root), set(), wanted)}


def has_images(root: Path) -> bool:
    """Tell whether there is an image below a folder; the first one ends the search."""
    seen: set[str] = set()
    for folder, below, _ in os.walk(root, followlinks=True):
        here = os.path.realpath(folder)
        below[:] = [] if here in seen else [name for name in below if not is_hidden(name)]
        if here not in seen and _images_in(folder):
            return True
        seen.add(here)
    return False


def find_photographs(root: Path) -> dict[str, list[str]]:
    """List the images below a folder, see `find_files`.

    Raises
    ------
    DataError
        There are none.
    """
    parts = find_files(root)
    if not any(parts.values()):
        raise DataError(f"{root} holds no images: they end in {', '.join(sorted(SUFFIXES))}")
    return parts


def _with_masks(root: Path, parts: Mapping[str, str]) -> dict[str, tuple[str, str]] | None:
    """Find the folders of images and of masks of each part, one called "" where there are none; None without masks."""
    if not parts:
        pair = _pair(str(root))
        if pair is None:
            return None
        below = [{name.lower(): name for name in _subfolders(place)} for place in pair]
        shared = {name for name in below[0] if name in KINDS and name in below[1]}
        if shared and below[0].keys() <= KINDS.keys():
            return {name: (join(pair[0], below[0][name]), join(pair[1], below[1][name])) for name in sorted(shared)}
        return {"": pair}
    pairs = {name: _pair(place) for name, place in parts.items()}
    return {name: pair for name, pair in pairs.items() if pair is not None} if all(pairs.values()) else None


def _pair(place: str) -> tuple[str, str] | None:
    """Find a folder's images and its masks, where it has both."""
    names = {name.lower(): name for name in _subfolders(place)}
    found = [next((names[own] for own in kinds if own in names), None) for kinds in (PICTURES, MASKS)]
    if found[0] is None or found[1] is None:
        return None
    images, masks = join(place, found[0]), join(place, found[1])
    return (images, masks) if _images_below(masks, set()) else None


def _dense(root: Path, pairs: Mapping[str, tuple[str, str]], preprocessing: Preprocessing) -> DataSet:
    """Load images with their masks."""
    files = {}
    try:
        for part, (images, masks) in pairs.items():
            own = _images_below(images, set())
            files[part] = own, find_masks(own, images, _images_below(masks, set()), masks)
        labels, classes = load_masks(files, preprocessing.size)
    except DataError as error:
        raise DataError(f"{error}; {next(iter(pairs.values()))[0]} alone has no labels") from None
    loaded = find_images([own for own, _ in files.values()], root, preprocessing.size)
    made = {part: Part(images, labels[part]) for part, images in zip(files, loaded, strict=True)}
    whole = made.pop("", None)
    named = {part: own for part, own in made.items() if len(own.images)}
    return data_set_of(str(root), named, whole, classes, preprocessing)


def _classes(root: Path, parts_by_name: dict[str, _Folder], whole: _Folder | None) -> tuple[str, ...] | None:
    """Settle the classes: those of the training images, else those of all."""
    trained = [folder for name, folder in parts_by_name.items() if KINDS[name.lower()] == "train" and folder.classes]
    if not trained:
        names = {name for folder in (whole, *parts_by_name.values()) if folder is not None for name in folder.classes}
        return tuple(sorted(names)) or None
    trained_classes = set(trained[0].classes)
    for part, folder in parts_by_name.items():
        if unknown := sorted(set(folder.classes) - trained_classes):
            raise DataError(
                f"{root}: test class {unknown[0]} has no folder under {_train(parts_by_name)}/, but one under {part}/"
            )
    return tuple(sorted(trained_classes))


def _one_class(places: Sequence[str]) -> bool:
    """Tell whether all parts have one and the same folder, which is a class then, unless it is called `images`."""
    names = [_subfolders(place) for place in places]
    if len(names) < 2 or len(names[0]) != 1 or any(own != names[0] for own in names):
        return False
    return names[0][0].lower() not in PICTURES


def _train(parts_by_name: dict[str, _Folder]) -> str:
    return next(name for name in parts_by_name if KINDS[name.lower()] == "train")


def _labels(folder: _Folder, classes: Sequence[str]) -> np.ndarray:
    numbers = np.array([classes.index(name) for name in folder.classes], np.int64)
    return numbers[np.array(folder.of_class, np.int64)]


def _by_class(place: str, least: int = 2, *, exactly: bool = False) -> _Folder:
    """Read a folder whose subfolders are classes, or else all images below it.

    Parameters
    ----------
    place
        The folder.
    least
        How many subfolders there are at least, where they are classes.
    exactly
        Take subfolders as classes only where every image lies directly in one of them.
    """
    names = sorted(_subfolders(place))
    seen = {os.path.realpath(place)}
    below = {name: _images_below(os.path.join(place, name), seen) for name in names}
    images = _images_in(place)
    deep = exactly and any(os.path.dirname(file) != os.path.join(place, name) for name in names for file in below[name])
    filled = [name for name in names if below[name]]
    unlabelled = {name.lower() for name in filled} <= set(PICTURES) and any(name.lower() in MASKS for name in names)
    if len(names) < least or not filled or unlabelled or deep or (exactly and (images or len(filled) < least)):
        return _Folder(sorted([*images, *(file for name in names for file in below[name])]))
    if images:
        _say(f"{place}: {len(images):,} images beside the folders of the classes, such as {images[0]}, are not used")
    files = [file for name in names for file in below[name]]
    return _Folder(files, names, [number for number, name in enumerate(names) for _ in below[name]])


def _subfolders(place: str) -> list[str]:
    with os.scandir(place) as entries:
        return [entry.name for entry in entries if not is_hidden(entry.name) and entry.is_dir()]


def _images_in(place: str, wanted: Wanted = is_image) -> list[str]:
    return sorted(
        os.path.join(place, name) for name in os.listdir(place) if wanted(name) and not is_hidden(name)
        and not os.path.isdir(os.path.join(place, name))
    )  # fmt: skip


def _images_below(place: str, seen: set[str], wanted: Wanted = is_image) -> list[str]:
    """List the images in a folder and all folders below it, but those already seen: links may lead to one twice."""
    paths: list[str] = []
    for folder, below, _ in os.walk(place, followlinks=True):
        here = os.path.realpath(folder)
        if here in seen:
            below.clear()
            continue
        seen.add(here)
        below[:] = sorted(name for name in below if not is_hidden(name))
        paths += _images_in(folder, wanted)
    return paths


def _say(sentence: str) -> None:
    warnings.warn(sentence, DepfuseWarning, stacklevel=3)
