"""Small versions of pictures for lists: made once, kept as files. The only place of the door that opens a picture."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path

from safelight.errors import NotFound
from safelight.runs import ImageRecord
from safelight.store.images import thumbnail_of

log = logging.getLogger(__name__)

MAX_SIDE = 320
MEDIA_TYPE = "image/webp"
MAX_PIXELS = 40_000_000

_QUALITY = 82


class Thumbnails:
    """A folder of small pictures, which the store empties as the large ones go. Anybody else may empty it too."""

    def __init__(self, folder: Path, read_image: Callable[[ImageRecord], Awaitable[bytes]]) -> None:
        self._folder = folder
        self._read_image = read_image
        # Pictures are unpacked one at a time: a page asks for dozens, and memory is for other things.
        self._making = asyncio.Semaphore(1)

    async def get(self, image: ImageRecord) -> bytes:
        """The small version of `image`. Raises NotFound when the large one is gone or no picture."""
        path = thumbnail_of(image.path, self._folder)
        kept = await asyncio.to_thread(_read, path)
        if kept is not None:
            return kept
        async with self._making:
            large = await self._read_image(image)
            return await asyncio.to_thread(_make, large, path)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _make(large: bytes, path: Path) -> bytes:
    small = _shrink(large)
    try:
        _keep(small, path)
    except OSError as error:
        # It is only not made again next time.
        log.warning("a small picture could not be kept", extra={"reason": str(error)})
    return small


def _keep(small: bytes, path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(small)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _shrink(large: bytes) -> bytes:
    # Only a process that shows pictures pays for the library.
    from PIL import Image, UnidentifiedImageError  # noqa: PLC0415

    try:
        with Image.open(io.BytesIO(large), formats=("PNG", "JPEG", "WEBP")) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise NotFound("this picture is too large for a small version", code="image_not_found")
            picture.thumbnail((MAX_SIDE, MAX_SIDE))
            buffer = io.BytesIO()
            picture.convert("RGB").save(buffer, "WEBP", quality=_QUALITY, method=2)
    except (UnidentifiedImageError, OSError) as error:
        raise NotFound("the file of this picture cannot be read", code="image_not_found") from error
    return buffer.getvalue()
