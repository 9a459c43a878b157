"""Fetching weights from the hub into its own library's cache: resumable, checked, and never seen half done."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import HfFileMetadata, http_get
from huggingface_hub.utils._headers import build_hf_headers

from safelight.catalog import INDEX, CatalogEntry, HubSource, missing_networks
from safelight.errors import ModelError
from safelight.weight_files import NETWORKS

_PARTS = (*NETWORKS, "tokenizer", "tokenizer_2", "scheduler")
_SMALL = (".json", ".txt", ".model")
_SHA_256 = re.compile(r"[0-9a-f]{64}")
_CHUNK_BYTES = 4 * 2**20
_ANSWER_SECONDS = 30.0

_OUT_OF_REACH = (OSError, httpx2.HTTPError, OfflineModeIsEnabled, HfHubHTTPError)

Bar = type[Any]
"""A class in the manner of tqdm's, made for each file and told of its bytes."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository. `etag` is what the cache will call its blob, where the hub says so beforehand."""

    name: str
    num_bytes: int
    etag: str | None = None


@dataclass(frozen=True, slots=True)
class Offer:
    """What one source has of a model: its files at one commit, model_index.json last."""

    source: HubSource
    commit: str
    files: tuple[RemoteFile, ...]


def fetch(entry: CatalogEntry, cache: Path, *, bar: Bar | None = None, endpoint: str | None = None) -> Path:
    """Bring the weights of `entry` into `cache` and return their folder; what is there already is kept.

    Sources are tried in order. A download that was interrupted goes on where it ended; one of the same file by another
    process is waited for. Raises ModelError with the remedy where no source has the model, a network has no file
    that can be served, the hub is out of reach, the disk is full, or a file is not the one it should be.
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
    folder = _snapshot(cache, offer)
    if missing := missing_networks(folder):
        raise ModelError(
            f"{offer.source.repository} holds no {' and no '.join(missing)}, which its {INDEX} names; take another"
            " repository"
        )
    return folder


def _find(entry: CatalogEntry, endpoint: str | None) -> Offer:
    """The first source that has the model."""
    gone: list[str] = []
    for source in entry.hub:
        try:
            info = HfApi(endpoint=endpoint).model_info(
                source.repository, revision=source.commit, timeout=_ANSWER_SECONDS, files_metadata=True
            )
        except GatedRepoError as error:
            raise ModelError(
                f"{source.repository} is gated: accept its licence at https://huggingface.co/{source.repository},"
                " log in with"
                " `hf auth login` (or set HF_TOKEN), and run this again"
            ) from error
        except (RepositoryNotFoundError, RevisionNotFoundError, DisabledRepoError, HFValidationError):
            gone.append(source.repository)
            continue
        except _OUT_OF_REACH as error:
            raise _out_of_reach(source, error) from error
        files = [
            RemoteFile(each.rfilename, each.size or 0, each.lfs.sha256 if each.lfs else each.blob_id)
            for each in info.siblings or ()
        ]
        return Offer(source, str(info.sha), _choose(files, entry))
    raise ModelError(
        f"the hub has no {' and no '.join(gone)} (any more, or for your account); if it is private, log in with"
        f" `hf auth login`; else name a folder or a checkpoint file in the setting models.{entry.identifier}"
    )


def _choose(files: Sequence[RemoteFile], entry: CatalogEntry) -> tuple[RemoteFile, ...]:
    """What the model needs: configs and tokenizers, and safetensors in the entry's variant where there is one. Raises
    ModelError for what is no model, or has a network without such a file."""
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
    _check_networks(known, {file.name for file in chosen}, entry)
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


def _check_networks(known: dict[str, RemoteFile], chosen: set[str], entry: CatalogEntry) -> None:
    """Raises ModelError where a network of the repository has no weights among the chosen files."""
    for network, stem in NETWORKS.items():
        files = sorted(name for name in known if name.startswith(f"{network}/"))
        if files and not any(name in chosen and name.endswith(".safetensors") for name in files):
            there = ", ".join(name for name in files if not name.endswith(_SMALL)) or "only its config"
            wanted = f"{network}/{stem}.safetensors" + (f" or its variant {entry.variant}" if entry.variant else "")
            raise ModelError(
                f"the repository of {entry.identifier} has no {wanted} in one piece (there is {there}); take another"
                f" repository, or name a folder with safetensors files in the setting models.{entry.identifier}"
            )


def _check_room(offer: Offer, cache: Path, identifier: str) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    missing = sum(_missing_bytes(file, offer, cache) for file in offer.files)
    free = shutil.disk_usage(cache).free
    if missing > free:
        raise ModelError(
            f"{identifier} needs {missing / 1e9:.1f} GB and {cache} has {free / 1e9:.1f} GB free; make room, or"
            " set hf_home"
            " to a larger disk"
        )


def _missing_bytes(file: RemoteFile, offer: Offer, cache: Path) -> int:
    """What is still to come of a file: not what an interrupted download left, nor what another commit brought."""
    if (_snapshot(cache, offer) / file.name).exists():
        return 0
    if file.etag is None:
        return file.num_bytes
    blob = _blob(cache, offer.source, file.etag)
    kept = next((each.stat().st_size for each in (blob, _partial(blob)) if each.exists()), 0)
    return max(0, file.num_bytes - kept)


def _fetch_file(
    offer: Offer, name: str, cache: Path, *, digest: str | None, bar: Bar | None, endpoint: str | None
) -> None:
    """Into the cache's blobs first, under another name until it is whole and right; then the cache gets to know it."""
    repository, commit = offer.source.repository, offer.commit
    if not (_snapshot(cache, offer) / name).exists():
        url = hf_hub_url(repository, name, revision=commit, endpoint=endpoint)
        found = get_hf_file_metadata(url, endpoint=endpoint)
        blob = _blob(cache, offer.source, str(found.etag))
        if not blob.exists():
            blob.parent.mkdir(parents=True, exist_ok=True)
            _fetch_blob(url, found, blob, name=name, digest=digest, bar=bar)
        # Its library finds the blob there, and lays the links.
        hf_hub_download(repository, name, revision=commit, cache_dir=cache, endpoint=endpoint)


def _fetch_blob(url: str, found: HfFileMetadata, blob: Path, *, name: str, digest: str | None, bar: Bar | None) -> None:
    """What is there under the blob's name is whole and right, and on the disk."""
    partial = _partial(blob)
    with _alone_with(partial) as opened:
        if blob.exists():
            # Another process brought it while this one waited.
            partial.unlink()
            return
        _download(url, found.location, opened, num_bytes=found.size, name=name, bar=bar)
        if digest is None and _SHA_256.fullmatch(str(found.etag)):
            # The etag of a file in LFS is the SHA-256 of its content.
            digest = found.etag
        _check_digest(partial, name, digest)
        partial.rename(blob)


@contextmanager
def _alone_with(partial: Path) -> Iterator[BinaryIO]:
    """`partial`, open at its end, for nobody else meanwhile; waits for whoever has it now."""
    while True:
        with partial.open("ab") as opened:
            fcntl.flock(opened, fcntl.LOCK_EX)
            if _is_at(partial, opened):
                # Whoever had it may have written since it was opened.
                opened.seek(0, os.SEEK_END)
                yield opened
                return


def _is_at(path: Path, opened: BinaryIO) -> bool:
    """False where the file was renamed or thrown away: writing to it would spoil a blob, or be for nothing."""
    try:
        return os.path.samestat(path.stat(), os.fstat(opened.fileno()))
    except FileNotFoundError:
        return False


def _download(url: str, location: str, partial: BinaryIO, *, num_bytes: int | None, name: str, bar: Bar | None) -> None:
    # A storage host beside the hub has its own ticket in the address, and is not shown the user's.
    is_hubs_own = urlsplit(location).netloc == urlsplit(url).netloc
    headers = build_hf_headers() if is_hubs_own else {}
    if num_bytes is not None and partial.tell() > num_bytes:
        # More than the whole: nothing that could be gone on from.
        partial.seek(0)
        partial.truncate()
    http_get(
        location,
        partial,
        resume_size=partial.tell(),
        headers=headers,
        expected_size=num_bytes,
        displayed_filename=name,
        tqdm_class=bar,
    )
    partial.flush()
    # After a power cut a blob must not be there under its name without its content.
    os.fsync(partial.fileno())


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


def _snapshot(cache: Path, offer: Offer) -> Path:
    return _repository(cache, offer.source) / "snapshots" / offer.commit


def _blob(cache: Path, source: HubSource, etag: str) -> Path:
    return _repository(cache, source) / "blobs" / etag


def _partial(blob: Path) -> Path:
    return blob.with_name(blob.name + ".partial")


def _out_of_reach(source: HubSource, error: Exception) -> ModelError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ModelError(
        f"the hub cannot be asked for {source.repository} ({reason}); check the network, HF_ENDPOINT and"
        " HF_HUB_OFFLINE, or copy the folder from another machine and name it in the setting models.<identifier>;"
        " what was fetched so far is kept"
    )
