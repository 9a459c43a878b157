"""Our tokenizer reads every text as transformers' does, from the files of old models and of new ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import CLIPTokenizer

import safelight
from safelight.engine.models.tokenizer import open_tokenizer

from .tiny_models import write_tokenizer

TEXTS = (
    "",
    "A photo of an Astronaut!! riding, isn't it?",
    "  spaces\n\tand   lines ",
    "hello <|endoftext|> there <|startoftext|> ! <|ENDOFTEXT|>",
    "Ünïcödé e\u0301 ﬁ İ Å 3 12 日本語 🚀🙂",
    "x" * 300,
    "<cat-toy> beside a <Cat-Toy>",
)


@pytest.fixture(params=["old", "old with another pad", "saved anew", "with an added token", "pinhole"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "pinhole":
        return Path(safelight.__file__).parent / "pinhole" / "tokenizer"
    folder = tmp_path / "tokenizer"
    write_tokenizer(folder, pad_token="!" if request.param == "old with another pad" else "<|endoftext|>")
    if request.param in ("saved anew", "with an added token"):
        tokenizer = CLIPTokenizer.from_pretrained(folder)
        if request.param == "with an added token":
            tokenizer.add_tokens(["<cat-toy>"])
        folder = tmp_path / "saved"
        tokenizer.save_pretrained(folder)
    return folder


def test_texts_are_read_as_transformers_reads_them(folder: Path) -> None:
    ours, theirs = open_tokenizer(folder), CLIPTokenizer.from_pretrained(folder)
    for text in TEXTS:
        found = theirs(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        starts = [start for start, _ in found["offset_mapping"]]
        assert [(piece.id, piece.start) for piece in ours.read(text)] == list(
            zip(found["input_ids"], starts, strict=True)
        )
    assert (ours.start_id, ours.end_id) == (theirs.bos_token_id, theirs.eos_token_id)
    assert (ours.pad_id, ours.window, len(ours)) == (theirs.pad_token_id, theirs.model_max_length, len(theirs))
