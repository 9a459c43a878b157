"""`prune`: what the server does from time to time, done now; or only said."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from safelight.cli.opening import with_store
from safelight.cli.options import ConfigOption, DataOption, JsonOption, existing_settings_of
from safelight.cli.output import explain, say, say_json, size

if TYPE_CHECKING:
    from safelight.janitor import Pruned
    from safelight.store import Store
    from safelight.store.retention import Expiry


def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    data: DataOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove what has expired: runs by age, images over the budget, files that no run names."""
    from safelight.janitor import Janitor

    settings = existing_settings_of(config, data)

    async def look(store: Store) -> tuple[Expiry, list[int], Pruned | None]:
        janitor = Janitor(store, settings.store, settings.worker)
        expiry, orphans = await janitor.preview()
        return expiry, orphans, None if dry_run else await janitor.prune()

    expiry, orphans, pruned = with_store(settings, look)
    if as_json:
        counts = {"num_orphan_files": len(orphans), "orphan_bytes": sum(orphans)}
        say_json({"is_dry_run": dry_run, "expiry": expiry, "pruned": pruned} | counts)
        return
    # How many went is known from the removing itself, how large they were only from looking just before.
    went, verb = (expiry, "would go") if pruned is None else (pruned, "went")
    num_files = len(orphans) if pruned is None else pruned.num_orphan_files
    age = f"over {settings.store.retention_days:g} days old"
    say(f"{went.num_runs} runs {age} {verb}, with about {size(expiry.run_bytes)} of images")
    say(f"the images of {went.num_runs_without_images} more runs {verb}: about {size(expiry.image_bytes)}")
    say(f"{went.num_deliveries} deliveries of deleted runs {verb}")
    say(f"{num_files} files that no run needs {verb}: about {size(sum(orphans))}")
    if expiry.bytes_over_budget:
        over = size(expiry.bytes_over_budget)
        explain(f"{over} over store.max_image_bytes stay: their runs have not ended, or a webhook is still to be told")
