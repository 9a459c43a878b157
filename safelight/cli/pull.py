"""`pull`: fetch a model's weights from the hub to this machine."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from safelight.catalog import CatalogEntry, HubSource, find_weights, hub_cache, hub_entry, is_hub_id
from safelight.catalog_file import load_catalog
from safelight.cli.options import ConfigOption, settings_of
from safelight.cli.output import explain, say
from safelight.config import Settings
from safelight.errors import FieldError, InvalidFields, ModelError


def pull(
    identifier: Annotated[
        str, typer.Argument(help="Identifier from `safelight models`, or a repository (owner/name).")
    ],
    revision: Annotated[
        str | None, typer.Option(help="Commit of the weights. Unset: the catalogue's, or what the main branch holds.")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Fetch the weights of a model into the local hub cache. Run again after an interruption: it goes on."""
    settings = settings_of(config, None)
    entry = _entry(settings, identifier, revision)
    try:
        folder = find_weights(
            identifier, folders=settings.models, hf_home=settings.hf_home, catalog={identifier: entry}
        )
        explain(f"{identifier} is here already")
    except ModelError:
        explain(f"{entry.title}, licence {entry.licence}: {entry.licence_url}")
        folder = _fetch(entry, hub_cache(settings.hf_home))
    say(str(folder))


def _entry(settings: Settings, identifier: str, revision: str | None) -> CatalogEntry:
    known = load_catalog(settings.catalog).get(identifier)
    if known is None:
        if not is_hub_id(identifier):
            message = f"{identifier!r} is neither an identifier nor a repository (owner/name); see `safelight models`"
            raise InvalidFields([FieldError("identifier", message)])
        known = hub_entry(identifier)
    return known if revision is None else _at(known, revision)


def _at(entry: CatalogEntry, revision: str) -> CatalogEntry:
    """The entry at another commit, which a deployment of an earlier release may ask for. Raises InvalidFields."""
    if not entry.hub:
        raise InvalidFields([FieldError("revision", f"{entry.identifier} is a folder without revisions; leave it out")])
    # The digests are those of the pinned commit's files.
    is_pinned = any(source.commit == revision for source in entry.hub)
    sources = tuple(HubSource(source.repository, revision) for source in entry.hub)
    return replace(entry, hub=sources, digests=entry.digests if is_pinned else {})


def _fetch(entry: CatalogEntry, cache: Path) -> Path:
    from huggingface_hub.utils.tqdm import tqdm

    from safelight.hub import fetch

    class Bar(tqdm):
        """Drawn where there is a terminal."""

        def __init__(self, *values: Any, **settings: Any) -> None:
            super().__init__(*values, **settings | {"disable": not sys.stderr.isatty()})  # type: ignore[no-untyped-call]

    return fetch(entry, cache, bar=Bar)
