from __future__ import annotations

import hashlib
import json
import uuid

import pytest

from safelight.deployments import Deployment
from safelight.runs import ImageRecord, NewRun, Outcome, OutputFormat, RunParams, RunStatus
from safelight.store import Store

from .conftest import House

PICTURE = b"a picture"


def add_run(house: House, *, ends: bool = False, webhook: str | None = None) -> str:
    """A queued run, or one that has ended with a picture."""
    run_id = str(uuid.uuid4())

    async def add(store: Store) -> None:
        await store.deployments.deploy(Deployment(name="toy", version=0, model="pinhole"))
        new = NewRun(
            id=run_id,
            project="default",
            key_id=None,
            deployment="toy",
            deployment_version=1,
            params=RunParams(prompt="a red boat", seed=7),
            webhook_endpoint=webhook,
        )
        await store.runs.create(new, max_queued=10)
        if not ends:
            return
        (claim,) = await store.runs.claim("worker", limit=1, lease_seconds=60)
        stored = await store.images.write(run_id, 0, claim.fence, OutputFormat.PNG, PICTURE)
        image = ImageRecord(
            index=0,
            seed=7,
            output_format=OutputFormat.PNG,
            path=stored.path,
            num_bytes=len(PICTURE),
            sha256=hashlib.sha256(PICTURE).hexdigest(),
        )
        await store.runs.add_image(claim, image)
        await store.runs.finish(claim, Outcome(status=RunStatus.SUCCEEDED, run_time_ms=1234.0))

    house.store(add)
    return run_id


def test_runs_are_listed_newest_first_page_by_page(house: House) -> None:
    ids = [add_run(house) for _ in range(3)]
    first = json.loads(house.ok("runs", "list", "--limit", "2", "--json").stdout)
    rest = json.loads(house.ok("runs", "list", "--cursor", first["next_cursor"], "--json").stdout)
    assert [run["id"] for run in first["runs"] + rest["runs"]] == ids[::-1]
    table = house.ok("runs", "list", "--limit", "2")
    assert "a red boat" in table.stdout
    assert first["next_cursor"] in table.stderr


def test_runs_are_listed_by_what_is_asked(house: House) -> None:
    waiting, ended = add_run(house), None
    house.ok("runs", "cancel", waiting)
    ended = add_run(house, ends=True)
    found = json.loads(house.ok("runs", "list", "--status", "succeeded", "--deployment", "toy", "--json").stdout)
    assert [run["id"] for run in found["runs"]] == [ended]


def test_one_run_is_shown_whole(house: House) -> None:
    run_id = add_run(house, ends=True)
    text = house.ok("runs", "show", run_id).stdout
    for word in (run_id, "succeeded", "a red boat", "euler", "1.2 s"):
        assert word in text
    assert json.loads(house.ok("runs", "show", run_id, "--json").stdout)["images"][0]["seed"] == 7


def test_a_waiting_run_says_how_many_are_before_it(house: House) -> None:
    add_run(house)
    assert json.loads(house.ok("runs", "show", add_run(house), "--json").stdout)["queue_position"] == 1


def test_a_waiting_run_is_cancelled_at_once_and_an_ended_one_is_refused(house: House) -> None:
    run_id = add_run(house)
    assert "is cancelled" in house.ok("runs", "cancel", run_id).stdout
    assert "nothing to cancel" in house.refused("runs", "cancel", add_run(house, ends=True))


def test_pictures_are_written_and_never_over_others(house: House) -> None:
    run_id = add_run(house, ends=True)
    (path,) = json.loads(house.ok("runs", "images", run_id, "--out", "out", "--json").stdout)
    written = house.folder / path
    assert written.read_bytes() == PICTURE
    written.write_bytes(b"mine")
    house.ok("runs", "images", run_id, "--out", "out")
    assert written.read_bytes() == b"mine"


def test_a_run_without_pictures_says_so(house: House) -> None:
    assert "queued and has no pictures" in house.refused("runs", "images", add_run(house))


def test_a_removed_run_is_gone(house: House) -> None:
    run_id = add_run(house, ends=True)
    house.ok("runs", "rm", run_id)
    house.refused("runs", "show", run_id)
    assert list(house.data.glob("images/*/*/*")) == []


def test_a_delivery_is_listed_shown_and_sent_again(house: House) -> None:
    run_id = add_run(house, ends=True, webhook="https://example.com/done")
    (found,) = json.loads(house.ok("webhooks", "list", "--run", run_id, "--json").stdout)
    assert "https://example.com/done" in house.ok("webhooks", "list", "--status", "pending").stdout
    assert "not tried yet" in house.ok("webhooks", "show", found["id"]).stderr
    assert "is due now" in house.ok("webhooks", "resend", found["id"]).stdout


def test_the_webhook_secret_stands_alone_and_is_the_one_that_signs(house: House) -> None:
    result = house.ok("webhooks", "secret")

    async def look(store: Store) -> str:
        return store.webhook_secret("default")

    assert result.stdout == house.store(look) + "\n"
    assert house.ok("webhooks", "secret", "--project", "shop").stdout != result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("runs", "show", "nobody"),
        ("runs", "cancel", "nobody"),
        ("runs", "images", "nobody"),
        ("runs", "rm", "nobody"),
        ("runs", "list", "--cursor", "garbled"),
        ("webhooks", "show", "nobody"),
        ("webhooks", "resend", "nobody"),
    ],
)
def test_what_does_not_exist_is_one_line(house: House, arguments: tuple[str, ...]) -> None:
    add_run(house)
    house.refused(*arguments)
