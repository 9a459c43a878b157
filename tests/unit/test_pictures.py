"""PNG files of our own making."""

from __future__ import annotations

import numpy as np
import pytest

from safelight.pictures import _Deflating, encode_picture, read_pixels
from safelight.runs import OutputFormat


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 3), (3, 1), (17, 64), (512, 512)])
def test_every_size_comes_back_as_it_was(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert (read_pixels(encode_picture(pixels, OutputFormat.PNG)) == pixels).all()


def test_where_a_half_cannot_be_compressed_there_is_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Deflating, "start", lambda self: None)
    monkeypatch.setattr(_Deflating, "join", lambda self: None)
    with pytest.raises(AttributeError):
        encode_picture(np.zeros((8, 8, 3), np.uint8), OutputFormat.PNG)
