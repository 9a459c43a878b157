from __future__ import annotations

from pathlib import Path

import pytest

from safelight.cli.pictures_out import PictureFolder, slug
from safelight.errors import ConfigError
from safelight.runs import OutputFormat


def test_a_picture_is_named_after_its_prompt_and_seed(tmp_path: Path) -> None:
    folder = PictureFolder(str(tmp_path), prompt="A red boat, on the sea!")
    assert folder.write(b"x", seed=7).name == "a-red-boat-on-the-sea-7.png"


def test_nothing_is_ever_overwritten(tmp_path: Path) -> None:
    folder = PictureFolder(str(tmp_path), prompt="boat")
    paths = [folder.write(text, seed=7) for text in (b"one", b"two", b"three")]
    assert [path.name for path in paths] == ["boat-7.png", "boat-7-2.png", "boat-7-3.png"]
    assert [path.read_bytes() for path in paths] == [b"one", b"two", b"three"]


def test_a_file_name_is_taken_with_the_format_of_its_suffix(tmp_path: Path) -> None:
    folder = PictureFolder(str(tmp_path / "new" / "boat.jpeg"), prompt="x")
    folder.prepare()
    assert folder.output_format is OutputFormat.JPEG
    assert folder.write(b"x", seed=7, output_format=OutputFormat.JPEG) == tmp_path / "new" / "boat.jpg"


def test_a_suffix_and_a_format_must_agree(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        PictureFolder(str(tmp_path / "boat.png"), prompt="x", output_format=OutputFormat.WEBP)


def test_a_folder_that_cannot_be_made_is_said_before_the_drawing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--out"):
        PictureFolder(str(tmp_path / "file" / "x"), prompt="x").prepare()


@pytest.mark.parametrize(
    ("prompt", "name"), [("", "picture"), ("日本", "picture"), ("../../etc", "etc"), ("a" * 99, "a" * 60)]
)
def test_any_prompt_makes_a_name(prompt: str, name: str) -> None:
    assert slug(prompt) == name
