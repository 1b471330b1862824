"""What image files hold beside the pixels that are read: how they are turned for viewing, and further frames."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from PIL import ExifTags, Image

from depfuse.errors import DepfuseWarning


@dataclass
class Unread:
    """Files that hold more than is read of them.

    As torchvision does, images are taken as they are stored, not as EXIF turns them, and of several frames the first.
    """

    turned: list[str] = field(default_factory=list)
    several: list[str] = field(default_factory=list)

    def note(self, path: str, image: Image.Image) -> None:
        """Note an opened file, of which the header is read."""
        if "exif" in image.info and image.getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1):
            self.turned.append(path)
        if getattr(image, "is_animated", False):
            self.several.append(path)

    def say(self, count: int, root: Path) -> None:
        """Warn of them, of so many images in a folder."""
        for files, what, taken in (
            (self.turned, "are to be turned for viewing, as their EXIF says", "all are taken as stored"),
            (self.several, "have several frames or pages", "the first of each is taken"),
        ):
            if files:
                warnings.warn(
                    f"{len(files)} of {count} images in {root} {what}, such as {os.path.relpath(files[0], root)}:"
                    f" {taken}",
                    DepfuseWarning,
                    stacklevel=3,
                )
