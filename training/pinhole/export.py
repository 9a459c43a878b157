"""From checkpoints to the folder that ships: diffusers' layout, half precision."""

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel

from training.pinhole.autoencoder import make_autoencoder
from training.pinhole.denoiser import BETA_END, BETA_START, NUM_TIMESTEPS, make_denoiser
from training.pinhole.files import saying_when_full
from training.pinhole.text_encoder import make_text_encoder
from training.pinhole.tokenizer import load_tokenizer
from training.pinhole.trainer import load_modules, save_atomically

SHIPPED = Path(__file__).parents[2] / "safelight" / "pinhole"


def make_scheduler() -> EulerDiscreteScheduler:
    return EulerDiscreteScheduler(
        num_train_timesteps=NUM_TIMESTEPS,
        beta_start=BETA_START,
        beta_end=BETA_END,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="linspace",
        steps_offset=1,
    )


def assemble(folder: Path) -> StableDiffusionPipeline:
    """The pipeline of the newest checkpoints in a working folder; a stage not yet run is left as it starts."""
    tokenizer = load_tokenizer(folder / "tokenizer")
    text_encoder, unet = make_text_encoder(tokenizer), make_denoiser()
    load_modules(folder / "text.pt", {"encoder": text_encoder})
    if (folder / "denoiser.pt").exists():
        load_modules(folder / "denoiser.pt", {"unet.average": unet})
    vae = make_autoencoder()
    if (folder / "decoder.pt").exists():
        load_modules(folder / "decoder.pt", {"decoder": vae.decoder, "quant": vae.post_quant_conv})
    if (folder / "encoder.pt").exists():
        load_modules(folder / "encoder.pt", {"encoder": vae.encoder, "quant": vae.quant_conv})
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def export(folder: Path, target: Path = SHIPPED) -> None:
    """Writes the weights over those in `target` once all are written beside it; its other files stay.

    Raises DiskFullError, and `target` is as it was.
    """
    target.mkdir(parents=True, exist_ok=True)
    with saying_when_full(target.name), TemporaryDirectory(dir=target.parent) as name:
        beside = Path(name)
        assemble(folder).to(torch.float16).save_pretrained(beside, safe_serialization=True)
        for table in ("vocab.json", "merges.txt"):
            shutil.copy(folder / "tokenizer" / table, beside / "tokenizer" / table)
        config = beside / "tokenizer" / "tokenizer_config.json"
        settings = json.loads(config.read_text(encoding="utf-8"))
        # How it was loaded here is nobody's business there.
        kept = {key: value for key, value in settings.items() if key not in ("is_local", "local_files_only")}
        config.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
        for path in sorted(beside.rglob("*")):
            # The libraries write some files for their owner alone; a package is read by everybody.
            path.chmod(0o755 if path.is_dir() else 0o644)
            place = target / path.relative_to(beside)
            if path.is_dir():
                place.mkdir(exist_ok=True)
            else:
                path.replace(place)


def adopt(source: Path, folder: Path) -> None:
    """Turns shipped weights into checkpoints of weights alone, for every stage that has none."""
    vae = AutoencoderKL.from_pretrained(source, subfolder="vae")
    unet = UNet2DConditionModel.from_pretrained(source, subfolder="unet")
    text_encoder = CLIPTextModel.from_pretrained(source, subfolder="text_encoder")
    parts: dict[str, dict[str, nn.Module]] = {
        "text": {"encoder": text_encoder},
        "decoder": {"decoder": vae.decoder, "quant": vae.post_quant_conv},
        "encoder": {"encoder": vae.encoder, "quant": vae.quant_conv},
        "denoiser": {"unet": unet, "unet.average": unet},
    }
    for stage, modules in parts.items():
        path = folder / f"{stage}.pt"
        if not path.exists():
            save_atomically({"modules": {name: module.float().state_dict() for name, module in modules.items()}}, path)
    if not (folder / "tokenizer").exists():
        shutil.copytree(source / "tokenizer", folder / "tokenizer")
