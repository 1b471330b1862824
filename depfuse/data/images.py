"""One image file as 8 bits per pixel and channel.

=====================================  =======================================================
what the file holds                    what becomes of it
=====================================  =======================================================
8 bits, grey, colour or a palette      the same
16 bits, grey                          divided by 257, so that black and white stay
floats, as TIFF has them               multiplied by 255 where all are in [0, 1], else refused
32-bit or signed whole numbers         refused: nothing says which of them is white
an alpha channel                       left out
=====================================  =======================================================
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from depfuse.data.preprocessing import box_of_shape
from depfuse.errors import DataError
from depfuse.text import first_line

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
# No others whatever a file is called: some of Pillow's readers call other programs.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_GREY = ("1", "L", "LA", "La", "I", "F")
_WHITE_OF_16_BITS = 65535  # largest value, 257 times 255


def is_image(name: str) -> bool:
    """Tell by its ending whether a file is an image."""
    return name[name.rfind(".") :].lower() in SUFFIXES


def is_hidden(name: str) -> bool:
    """Tell whether a file or folder is hidden by a system or program, such as `._3.png` or `.ipynb_checkpoints`."""
    return name.startswith(".") or name == "__MACOSX"


@contextmanager
def opened(file: Path) -> Iterator[Image.Image]:
    """Open an image; turn any error of its decoder, here or in the block, into a `DataError` that names the file."""
    if file.exists() and not file.is_file():
        raise DataError(f"{file} is no image, but a folder, pipe or device: remove it, or give it another name")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=_FORMATS) as image:
                yield image
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        most = (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise DataError(f"{file} has more than {most:.0f} megapixels: scale it down") from None
    except Exception as error:  # a damaged image may raise anything
        reason = first_line(error)
        raise DataError(f"{file} cannot be read as an image: {reason}") from None


def is_grey_mode(mode: str) -> bool:
    """Tell whether Pillow's mode of an image has one channel; a palette counts as colour."""
    return mode in _GREY or mode.startswith("I;16")


def read_image(file: Path, *, grey: bool, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Read an image as (H, W), grey, or (H, W, 3).

    Parameters
    ----------
    file
        The image.
    grey
        True to convert it to grey, by luminance, or else to RGB.
    size
        (height, width) to resize and crop it to, see `box_of_shape`; None keeps its own.

    Raises
    ------
    DataError
        The image cannot be read, is too large, or its numbers do not define white.
    """
    with opened(file) as image:
        return as_pixels(image, str(file), grey=grey, size=size)


def as_pixels(image: Image.Image, name: str, *, grey: bool, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Convert an image to pixels as `read_image` gives them; `name` is for messages."""
    plain = _eight_bits(name, image)
    if "transparency" in plain.info and plain.mode == "P":
        plain = plain.convert("RGBA")
    plain = plain.convert("L" if grey else "RGB")
    if size is not None and (plain.height, plain.width) != size:
        top, left, height, width = box_of_shape(plain.height, plain.width, size)
        box = (left, top, left + width, top + height)
        plain = plain.resize((size[1], size[0]), Image.Resampling.BICUBIC, box)
    return np.array(plain, np.uint8)


def _eight_bits(file: str, image: Image.Image) -> Image.Image:
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    if image.mode == "F":
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise DataError(f"{file} holds floats outside [0, 1]: scale them to [0, 1], or save 8 or 16 bits per pixel")
        return Image.fromarray(np.rint(values * 255.0).astype(np.uint8))
    # Pillow gives some 16-bit images, PNG and PGM alike, as 32-bit ones; TIFF's are what they say.
    if image.mode == "I" and (image.format == "TIFF" or values.min() < 0 or values.max() > _WHITE_OF_16_BITS):
        raise DataError(f"{file} holds 32-bit or signed numbers, which do not say what is white: save 8 or 16 bits")
    return Image.fromarray(np.rint(values / 257.0).astype(np.uint8))
