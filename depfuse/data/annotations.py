"""Annotations beside images, such as boxes of detectors, which are not read: nothing lies there in silence."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from depfuse.data.images import is_hidden

PER_IMAGE = (".txt", ".xml", ".json")  # of YOLO, VOC and labelme: a file for each image, with its name
_OF_ALL = re.compile(rb'"(bbox|annotations)"\s*:')  # in a file of COCO
_BOXED = {"xmin", "x_min", "x1", "left", "bbox"}
_FILES = {"file", "files", "filename", "file_name", "filepath", "path", "image", "image_id", "image_name"}
_READ = 2**20  # bytes of a file of all annotations


def unread_annotations(root: Path, images: Iterable[str]) -> str | None:
    """Say of the first file of annotations below a folder that it is not read; None where there is none."""
    names = {os.path.splitext(os.path.basename(image))[0] for image in images}
    for folder, below, files in os.walk(root):
        below[:] = sorted(name for name in below if not is_hidden(name))
        for file in sorted(files):
            stem, ending = os.path.splitext(file)
            path = Path(folder) / file
            if is_hidden(file):
                continue
            if ending.lower() == ".csv" and (heads := _heads(path)) & _FILES:
                if not heads & _BOXED:
                    return f"{path} is not read: give it in the place of the folder to have its labels"
                return _boxes(path)
            if (ending.lower() in PER_IMAGE and stem in names) or (ending.lower() == ".json" and _is_of_all(path)):
                return _boxes(path)
    return None


def _boxes(path: Path) -> str:
    return f"{path} and its like are not read: detectors are fused without boxes, and none are used to score them"


def _heads(path: Path) -> set[str]:
    line = _start(path).splitlines()[:1]
    return {
        word.strip(b" \"'\t").decode("utf-8", "replace").lower() for own in line for word in re.split(rb"[,;\t]", own)
    }


def _is_of_all(path: Path) -> bool:
    return _OF_ALL.search(_start(path)) is not None


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_READ)
    except OSError:
        return b""
