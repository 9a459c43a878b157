"""Pictures that a run begins from: looked at within limits before they are decoded, then read as pixels. No torch."""

# ruff: noqa: PLC0415 - the API process is light until it is sent a picture.

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from safelight.runs import OutputFormat

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from safelight.pictures import Pixels

MAX_INPUT_PIXELS = 4096 * 4096
"""Decoded, three bytes each. Files of a few bytes can claim to be far larger."""

MIN_INPUT_SIDE = 8

_FORMATS = {
    "PNG": OutputFormat.PNG,
    "JPEG": OutputFormat.JPEG,
    "WEBP": OutputFormat.WEBP,
    # A JPEG with others behind it, as telephones write them: the first one counts.
    "MPO": OutputFormat.JPEG,
}
_SIDEWAYS = (5, 6, 7, 8)
_ORIENTATION = 0x0112
_WHITE = 128


@dataclass(frozen=True, slots=True)
class InputShape:
    """What a picture file is, and the sides in pixels that it is shown with."""

    format: OutputFormat
    height: int
    width: int


def look_at(data: bytes) -> InputShape:
    """What a file holds, decoded once it is known to be small enough. Raises ValueError with the rest of a sentence."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=list(_FORMATS)) as image:
            # Before anything else: to ask for the orientation would decode.
            _check_size(*image.size)
            image.load()
            return _shape_of(image)
    except _Refused as error:
        raise ValueError(str(error)) from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"has more than {MAX_INPUT_PIXELS} pixels; send it smaller") from error
    except Exception as error:
        # Pillow's decoders raise many kinds for damaged files.
        raise ValueError("is no whole PNG, JPEG or WebP picture; send one as base64") from error


def start_pixels(data: bytes, height: int, width: int) -> Pixels:
    """[height, width, 3]: the picture as it is shown, scaled. What is transparent is as it is stored."""
    import numpy as np

    return np.asarray(_scaled(data, "RGB", height, width))


def start_mask(data: bytes, height: int, width: int) -> NDArray[np.bool_]:
    """[height, width], true where the picture is nearer to white than to black."""
    import numpy as np

    return np.asarray(_scaled(data, "L", height, width)) >= _WHITE


class _Refused(Exception):
    pass


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_INPUT_PIXELS:
        raise _Refused(f"is {width} x {height} pixels, which is more than {MAX_INPUT_PIXELS}; send it smaller")
    if min(width, height) < MIN_INPUT_SIDE:
        raise _Refused(f"has a side of less than {MIN_INPUT_SIDE} pixels; send it larger")


def _scaled(data: bytes, mode: str, height: int, width: int) -> Image.Image:
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=list(_FORMATS)) as image:
        shown = _with_8_bits(_upright(image)).convert(mode)
    return shown if shown.size == (width, height) else shown.resize((width, height), Image.Resampling.LANCZOS)


def _upright(image: Image.Image) -> Image.Image:
    """As it is shown. Pillow's own way writes the rest of the EXIF anew too, which fails where that is odd."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    turn = turns.get(image.getexif().get(_ORIENTATION, 1))
    return image if turn is None else image.transpose(turn)


def _with_8_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, scaled: Pillow's own conversion takes all but the darkest 255 shades for white."""
    import numpy as np
    from PIL import Image

    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)) if image.mode.startswith("I") else image


def _shape_of(image: Image.Image) -> InputShape:
    width, height = image.size
    if image.getexif().get(_ORIENTATION) in _SIDEWAYS:
        width, height = height, width
    return InputShape(_FORMATS[str(image.format)], height, width)
