"""Fetching weights from the hub into its own library's cache: resumable, checked, and never seen half done."""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils._headers import build_hf_headers

from safelight.catalog import CatalogEntry, HubSource
from safelight.errors import ModelError

INDEX = "model_index.json"

_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
_SMALL = (".json", ".txt", ".model")
_CHUNK_BYTES = 4 * 2**20

_OUT_OF_REACH = (OSError, httpx2.HTTPError, OfflineModeIsEnabled, HfHubHTTPError)

Bar = type[Any]
"""A class in the manner of tqdm's, made for each file and told of its bytes."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository."""

    name: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Offer:
    """What one source has of a model: its files at one commit, model_index.json last."""

    source: HubSource
    commit: str
    files: tuple[RemoteFile, ...]


def fetch(entry: CatalogEntry, cache: Path, *, bar: Bar | None = None, endpoint: str | None = None) -> Path:
    """Bring the weights of `entry` into `cache` and return their folder; what is there already is kept.

    Sources are tried in order. A download that was interrupted goes on where it ended. Raises
    ModelError with the remedy where no source has the model, the hub is out of reach, the disk is full,
    or a file is not the one it should be.
    """
    offer = _find(entry, endpoint)
    _check_room(offer, cache, entry.identifier)
    try:
        for file in offer.files:
            _fetch_file(offer, file.name, cache, digest=entry.digests.get(file.name), bar=bar, endpoint=endpoint)
    except _OUT_OF_REACH as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ModelError(
                f"the disk of {cache} is full; make room and run this again: it goes on from here"
            ) from error
        raise _out_of_reach(offer.source, error) from error
    return _repository(cache, offer.source) / "snapshots" / offer.commit


def _find(entry: CatalogEntry, endpoint: str | None) -> Offer:
    """The first source that has the model."""
    gone: list[str] = []
    for source in entry.hub:
        try:
            info = HfApi(endpoint=endpoint).model_info(source.repository, revision=source.commit, files_metadata=True)
        except GatedRepoError as error:
            raise ModelError(
                f"{source.repository} is gated: accept its licence at https://huggingface.co/{source.repository},"
                " log in with"
                " `hf auth login` (or set HF_TOKEN), and run this again"
            ) from error
        except (RepositoryNotFoundError, RevisionNotFoundError, DisabledRepoError):
            gone.append(source.repository)
            continue
        except _OUT_OF_REACH as error:
            raise _out_of_reach(source, error) from error
        files = [RemoteFile(each.rfilename, each.size or 0) for each in info.siblings or ()]
        return Offer(source, str(info.sha), _choose(files, entry))
    raise ModelError(
        f"the hub has no {' and no '.join(gone)} (any more, or for your account); if it is private, log in with"
        f" `hf auth login`; else name a folder or a checkpoint file in the setting models.{entry.identifier}"
    )


def _choose(files: Sequence[RemoteFile], entry: CatalogEntry) -> tuple[RemoteFile, ...]:
    """What the model needs: configs and tokenizers, and safetensors in the entry's variant where there is one."""
    known = {file.name: file for file in files}
    if INDEX not in known:
        raise ModelError(f"the repository of {entry.identifier} holds no diffusers model ({INDEX} is missing)")
    chosen = []
    for file in files:
        part, _, rest = file.name.partition("/")
        if part not in _PARTS or not rest or "/" in rest:
            continue
        is_small = rest.endswith(_SMALL) and ".index." not in rest
        if is_small or (rest.endswith(".safetensors") and _is_wanted(file.name, known, entry.variant)):
            chosen.append(file)
    return *sorted(chosen, key=lambda file: file.num_bytes), known[INDEX]


def _is_wanted(name: str, known: dict[str, RemoteFile], variant: str | None) -> bool:
    """The variant's file where there is one; the plain one where there is not."""
    folder, _, file = name.rpartition("/")
    stem, _, kind = file.removesuffix(".safetensors").partition(".")
    if stem not in ("model", "diffusion_pytorch_model"):
        return False
    if kind:
        return kind == variant
    return variant is None or f"{folder}/{stem}.{variant}.safetensors" not in known


def _check_room(offer: Offer, cache: Path, identifier: str) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    snapshot = _repository(cache, offer.source) / "snapshots" / offer.commit
    missing = sum(file.num_bytes for file in offer.files if not (snapshot / file.name).exists())
    free = shutil.disk_usage(cache).free
    if missing > free:
        raise ModelError(
            f"{identifier} needs {missing / 1e9:.1f} GB and {cache} has {free / 1e9:.1f} GB free; make room, or"
            " set hf_home"
            " to a larger disk"
        )


def _fetch_file(
    offer: Offer, name: str, cache: Path, *, digest: str | None, bar: Bar | None, endpoint: str | None
) -> None:
    """Into the cache's blobs first, under another name until it is whole and right; then the cache gets to know it."""
    repository, commit = offer.source.repository, offer.commit
    snapshot = _repository(cache, offer.source) / "snapshots" / commit / name
    if not snapshot.exists():
        url = hf_hub_url(repository, name, revision=commit, endpoint=endpoint)
        found = get_hf_file_metadata(url, endpoint=endpoint)
        blob = _repository(cache, offer.source) / "blobs" / str(found.etag)
        if not blob.exists():
            blob.parent.mkdir(parents=True, exist_ok=True)
            partial = blob.with_name(blob.name + ".partial")
            _download(url, found.location, partial, num_bytes=found.size, name=name, bar=bar)
            _check_digest(partial, name, digest)
            partial.rename(blob)
        # Its library finds the blob there, and lays the links.
        hf_hub_download(repository, name, revision=commit, cache_dir=cache, endpoint=endpoint)


def _download(url: str, location: str, partial: Path, *, num_bytes: int | None, name: str, bar: Bar | None) -> None:
    # A storage host beside the hub has its own ticket in the address, and is not shown the user's.
    is_hubs_own = urlsplit(location).netloc == urlsplit(url).netloc
    headers = build_hf_headers() if is_hubs_own else {}
    with partial.open("ab") as opened:
        http_get(
            location,
            opened,
            resume_size=opened.tell(),
            headers=headers,
            expected_size=num_bytes,
            displayed_filename=name,
            tqdm_class=bar,
        )


def _check_digest(file: Path, name: str, digest: str | None) -> None:
    if digest is None:
        return
    found = hashlib.sha256()
    with file.open("rb") as opened:
        while chunk := opened.read(_CHUNK_BYTES):
            found.update(chunk)
    if found.hexdigest() != digest:
        file.unlink()
        raise ModelError(
            f"{name} is not the file it should be (SHA-256 {found.hexdigest()} instead of {digest}) and was"
            " thrown away;"
            " run this again, and if it stays so do not use this source"
        )


def _repository(cache: Path, source: HubSource) -> Path:
    return cache / ("models--" + source.repository.replace("/", "--"))


def _out_of_reach(source: HubSource, error: Exception) -> ModelError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ModelError(
        f"the hub cannot be asked for {source.repository} ({reason}); check the network, HF_ENDPOINT and"
        " HF_HUB_OFFLINE, or copy the folder from another machine and name it in the setting models.<identifier>;"
        " what was fetched so far is kept"
    )
