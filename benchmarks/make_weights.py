"""The exact architecture of Stable Diffusion 2.1 with random weights, in half precision:
`python -m benchmarks.make_weights FOLDER`.

2.6 GB in diffusers' layout, written tensor by tensor, for measuring what only the sizes decide. It draws noise.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel

from safelight.engine.models.vocabulary import END, START, WINDOW, byte_symbols

NUM_TOKENS = 49408

UNET = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 96,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
    "upcast_attention": True,
}
VAE = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
TEXT_ENCODER = {
    "architectures": ["CLIPTextModel"],
    "vocab_size": NUM_TOKENS,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "max_position_embeddings": WINDOW,
    "hidden_act": "gelu",
    "projection_dim": 512,
    "bos_token_id": NUM_TOKENS - 2,
    "eos_token_id": NUM_TOKENS - 1,
}
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "prediction_type": "v_prediction",
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
}


def write_random(network: torch.nn.Module, file: Path, seed: int) -> int:
    """Half-precision weights for a network that has none; the number of parameters. One tensor in memory at a time."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items() if "position_ids" not in name}
    header: dict[str, object] = {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            opened.write(_random(name, shape, generator).half().numpy().tobytes())
    return end // 2


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if len(shape) == 1:
        return torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
    return torch.randn(shape, generator=generator) * 0.7 / math.prod(shape[1:]) ** 0.5


def write_tokenizer(folder: Path) -> None:
    """CLIP's format and number of tokens, without its merges: every byte is read by itself."""
    folder.mkdir()
    symbols = byte_symbols()
    names = [*symbols, *(symbol + "</w>" for symbol in symbols)]
    names += [f"filler{number}</w>" for number in range(NUM_TOKENS - len(names) - 2)] + [START, END]
    (folder / "vocab.json").write_text(json.dumps({name: place for place, name in enumerate(names)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokens = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": "!"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokens, "model_max_length": WINDOW}))
    (folder / "special_tokens_map.json").write_text(json.dumps(tokens))


def write_model(folder: Path) -> int:
    """The whole model; the number of its parameters."""
    with torch.device("meta"):
        networks = {
            "unet": (UNet2DConditionModel.from_config(UNET), UNET, "diffusion_pytorch_model"),
            "vae": (AutoencoderKL.from_config(VAE), VAE, "diffusion_pytorch_model"),
            "text_encoder": (CLIPTextModel(CLIPTextConfig.from_dict(TEXT_ENCODER)), TEXT_ENCODER, "model"),
        }
    folder.mkdir(parents=True)
    total = 0
    for seed, (name, (network, config, stem)) in enumerate(networks.items()):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
        total += write_random(network, folder / name / f"{stem}.fp16.safetensors", seed)
    write_tokenizer(folder / "tokenizer")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    (folder / "model_index.json").write_text(json.dumps(INDEX))
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a folder that does not exist yet")
    folder = parser.parse_args().folder
    print(f"{write_model(folder):,} parameters in {folder}")


if __name__ == "__main__":
    main()
