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


def add_run(house: House, *, ends: bool = False, webhook: str | None = None, prompt: str = "a red boat") -> str:
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
            params=RunParams(prompt=prompt, seed=7),
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


def test_no_prompt_commands_the_terminal(house: House) -> None:
    run_id = add_run(house, prompt="a \x1b]52;c;aGk=\x07boat\nstatus: succeeded \x9b2J \u202efdp 木 é")
    for shown in (house.ok("runs", "show", run_id).stdout, house.ok("runs", "list").stdout):
        assert not set(shown) & set("\x1b\x07\x9b\u202e")
    assert "a ?]52;c;aGk=?boat?status: succeeded ?2J ?fdp 木 é" in house.ok("runs", "show", run_id).stdout


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
        return (await store.project_secrets.newest("default")).secret

    assert result.stdout == house.store(look) + "\n"
    assert house.ok("webhooks", "secret", "--project", "shop").stdout != result.stdout


def add_endpoint(house: House, *arguments: str) -> dict[str, str]:
    made = json.loads(house.ok("webhooks", "add", "https://example.com/in", *arguments, "--json").stdout)
    return made["endpoint"] | {"secret": made["secret"]}


def test_an_endpoint_is_registered_and_its_secret_stands_alone(house: House) -> None:
    secret = house.ok("webhooks", "add", "https://example.com/in", "--event", "failed").stdout
    assert secret.startswith("whsec_") and secret.count("\n") == 1
    (endpoint,) = json.loads(house.ok("webhooks", "endpoints", "--json").stdout)
    assert (endpoint["events"], endpoint["status"], endpoint["project"]) == (["failed"], "enabled", "default")
    assert house.ok("webhooks", "secret", "--endpoint", endpoint["id"]).stdout == secret
    assert "https://example.com/in" in house.ok("webhooks", "endpoints", "--project", "default").stdout
    assert "already" in house.refused("webhooks", "add", "https://example.com/in")
    assert "10.0.0.1" in house.refused("webhooks", "add", "http://10.0.0.1/in")


def test_a_rotated_endpoint_prints_its_new_secret(house: House) -> None:
    made = add_endpoint(house)
    rotated = house.ok("webhooks", "rotate", made["id"])
    assert rotated.stdout != made["secret"] + "\n" and "until" in rotated.stderr
    assert "until" not in house.ok("webhooks", "rotate", made["id"], "--overlap-hours", "0").stderr


def test_a_rotated_project_prints_its_new_secret(house: House) -> None:
    before = house.ok("webhooks", "secret", "--project", "shop").stdout
    rotated = house.ok("webhooks", "rotate", "--project", "shop")
    assert rotated.stdout.startswith("whsec_") and rotated.stdout != before and "until" in rotated.stderr
    assert house.ok("webhooks", "secret", "--project", "shop").stdout == rotated.stdout
    assert "ENDPOINT" in house.refused("webhooks", "rotate")
    assert "ENDPOINT" in house.refused("webhooks", "rotate", "some", "--project", "shop")


def test_an_endpoint_is_registered_for_one_key_by_its_name(house: House) -> None:
    house.ok("keys", "create", "shop", "--project", "theirs")
    house.ok("webhooks", "add", "https://example.com/in", "--key", "shop")
    (endpoint,) = json.loads(house.ok("webhooks", "endpoints", "--json").stdout)
    assert endpoint["project"] == "theirs" and endpoint["key_id"]
    assert "no such key" in house.refused("webhooks", "add", "https://example.com/other", "--key", "nobody")


def test_what_an_endpoint_missed_is_sent_again_once_it_is_enabled(house: House) -> None:
    endpoint_id = add_endpoint(house)["id"]
    house.ok("webhooks", "disable", endpoint_id)
    assert "disabled: by request" in house.ok("webhooks", "endpoints").stdout
    add_run(house, ends=True)
    assert "enable it first" in house.refused("webhooks", "resend", "--endpoint", endpoint_id)
    house.ok("webhooks", "enable", endpoint_id)
    assert house.ok("webhooks", "resend", "--endpoint", endpoint_id, "--since", "2999-01-01").stdout.startswith("0 ")
    assert house.ok("webhooks", "resend", "--endpoint", endpoint_id, "--since", "2001-01-01").stdout.startswith("1 ")
    (found,) = json.loads(house.ok("webhooks", "list", "--endpoint", endpoint_id, "--json").stdout)
    assert found["status"] == "pending"
    house.ok("webhooks", "rm", endpoint_id)
    assert "the endpoint was removed" in house.ok("webhooks", "show", found["id"]).stdout
    assert "name one delivery" in house.refused("webhooks", "resend")


def test_pruning_dry_says_what_would_go_and_then_it_goes(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = add_run(house, ends=True)
    assert "0 runs over 30 days old would go" in house.ok("prune", "--dry-run").stdout
    monkeypatch.setenv("SAFELIGHT_STORE__MAX_IMAGE_BYTES", "5")
    for _ in range(2):
        going = json.loads(house.ok("prune", "--dry-run", "--json").stdout)
        assert (going["expiry"]["num_runs_without_images"], going["expiry"]["image_bytes"]) == (1, len(PICTURE))
    assert f"of 1 more runs went: about {len(PICTURE)} B" in house.ok("prune").stdout
    assert json.loads(house.ok("runs", "show", run_id, "--json").stdout)["images"] == []
    assert list(house.data.glob("images/*/*/*")) == []
    monkeypatch.setenv("SAFELIGHT_STORE__RETENTION_DAYS", "1e-9")
    assert house.ok("prune").stdout.startswith("1 runs")
    house.refused("runs", "show", run_id)


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
        ("webhooks", "rotate", "nobody"),
        ("webhooks", "enable", "nobody"),
        ("webhooks", "rm", "nobody"),
        ("webhooks", "resend", "--endpoint", "nobody"),
        ("webhooks", "secret", "--endpoint", "nobody"),
    ],
)
def test_what_does_not_exist_is_one_line(house: House, arguments: tuple[str, ...]) -> None:
    add_run(house)
    house.refused(*arguments)
