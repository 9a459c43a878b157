"""The text encoder, taught to say what stands where before it has seen a single picture.

A small reader looks up, for every cell of an 8 by 8 layout, which subject is there and in which colour, through
the same kind of cross-attention that the denoiser will use. Colours are then bound to their subjects from the
denoiser's first step.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from training.pinhole.captions import draw_caption
from training.pinhole.palette import COLOURS
from training.pinhole.scenes import Scene, cells, draw_scene
from training.pinhole.settings import SETTINGS
from training.pinhole.subjects import SUBJECTS
from training.pinhole.tokenizer import MAX_TOKENS, tokenize

WIDTH = 192
GRID = 8
SIDE = 256
COLOUR_NAMES = ("its own", *COLOURS)


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=4,
        num_attention_heads=6,
        max_position_embeddings=MAX_TOKENS,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


class LayoutReader(nn.Module):
    """Asks the words what is in each cell."""

    def __init__(self) -> None:
        super().__init__()
        self.cell_embedding = nn.Parameter(0.02 * torch.randn(GRID * GRID, WIDTH))
        layer = nn.TransformerDecoderLayer(
            WIDTH, 6, 2 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerDecoder(layer, 2, norm=nn.LayerNorm(WIDTH))
        self.subject = nn.Linear(WIDTH, len(SUBJECTS) + 1)
        self.colour = nn.Linear(WIDTH, len(COLOUR_NAMES))
        self.setting = nn.Linear(WIDTH, len(SETTINGS))

    def forward(self, words: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.layers(self.cell_embedding.expand(len(words), -1, -1), words)
        return self.subject(hidden), self.colour(hidden), self.setting(hidden.mean(1))


@dataclass(frozen=True, slots=True)
class Batch:
    tokens: Tensor
    subject: Tensor
    """[B, 64], 0 for none."""
    colour: Tensor
    """[B, 64] index into COLOUR_NAMES, -100 where there is no subject."""
    setting: Tensor

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.tokens.to(device), self.subject.to(device), self.colour.to(device), self.setting.to(device))


def _targets(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    owner, placed = cells(scene, SIDE, SIDE)
    names = list(SUBJECTS)
    subjects = [0, *(names.index(one.subject.name) + 1 for one in placed)]
    colours = [-100, *(COLOUR_NAMES.index(one.subject.colour or "its own") for one in placed)]
    return np.asarray(subjects)[owner].ravel(), np.asarray(colours)[owner].ravel()


def draw_batch(random: np.random.Generator, tokenizer: CLIPTokenizer, count: int) -> Batch:
    scenes = [draw_scene(random) for _ in range(count)]
    tokens = tokenize(tokenizer, [draw_caption(scene, random) for scene in scenes])
    subjects, colours = zip(*map(_targets, scenes), strict=True)
    settings = [SETTINGS.index(scene.setting) for scene in scenes]
    return Batch(
        torch.from_numpy(tokens),
        torch.from_numpy(np.stack(subjects)),
        torch.from_numpy(np.stack(colours)),
        torch.tensor(settings),
    )


def text_loss(encoder: CLIPTextModel, reader: LayoutReader, batch: Batch) -> tuple[Tensor, dict[str, float]]:
    with torch.autocast(batch.tokens.device.type, torch.bfloat16):
        subject, colour, setting = reader(encoder(batch.tokens).last_hidden_state)
    named = F.cross_entropy(subject.float().flatten(0, 1), batch.subject.flatten())
    coloured = F.cross_entropy(colour.float().flatten(0, 1), batch.colour.flatten())
    set_in = F.cross_entropy(setting.float(), batch.setting)
    is_covered = batch.subject > 0
    right = (subject.argmax(-1) == batch.subject)[is_covered].float().mean()
    news = {
        "named": named.item(),
        "coloured": coloured.item(),
        "setting": set_in.item(),
        "subjects right": right.item(),
    }
    return named + 0.5 * coloured + 0.3 * set_in, news
