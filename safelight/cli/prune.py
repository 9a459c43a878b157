"""`prune`: what the server does from time to time, done now; or only said."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from safelight.cli.opening import with_store
from safelight.cli.options import ConfigOption, DataOption, JsonOption, existing_settings_of
from safelight.cli.output import explain, say, say_json, size

if TYPE_CHECKING:
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

    async def look(store: Store) -> tuple[Expiry, list[int]]:
        janitor = Janitor(store, settings.store, settings.worker)
        going = await janitor.preview()
        if not dry_run:
            await janitor.prune()
        return going

    expiry, orphans = with_store(settings, look)
    if as_json:
        counts = {"num_orphan_files": len(orphans), "orphan_bytes": sum(orphans)}
        say_json({"is_dry_run": dry_run, "expiry": expiry} | counts)
        return
    verb = "would go" if dry_run else "went"
    age = f"over {settings.store.retention_days:g} days old"
    say(f"{expiry.num_runs} runs {age} {verb}, with {size(expiry.run_bytes)} of images")
    say(f"the images of {expiry.num_runs_without_images} more runs {verb}: {size(expiry.image_bytes)}")
    say(f"{expiry.num_deliveries} deliveries of deleted runs {verb}")
    say(f"{len(orphans)} files that no run names {verb}: {size(sum(orphans))}")
    if expiry.bytes_over_budget:
        over = size(expiry.bytes_over_budget)
        explain(f"{over} over store.max_image_bytes stay: their runs have not ended, or a webhook is still to be told")
