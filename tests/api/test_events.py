"""The event stream of a run: order, resuming, progress, heartbeats, its end."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise

from safelight.api.sse import event_stream, format_event, read_last_event_id
from safelight.errors import TryLater
from safelight.runs import Progress, RunEvent, RunEventKind

from .house import failing

ASYNC = {"Prefer": "respond-async"}


def parse(text: str) -> list[dict[str, str]]:
    """The events of a stream, as a browser reads them; comments and `retry` are left out."""
    events = []
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line and not line.startswith((":", "retry:"))]
        if lines:
            events.append(dict(line.split(": ", 1) for line in lines))
    return events


async def submit(house, **body: object) -> str:
    answer = await house.client.post("/pinhole/predict", json={"prompt": "x"} | body, headers=ASYNC)
    return answer.json()["run_id"]


async def test_a_stream_tells_the_whole_story_and_ends(house):
    run_id = await submit(house, width=64, height=64, num_images_per_prompt=2)
    async with house.working():
        answer = await house.client.get(f"/runs/{run_id}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    events = parse(answer.text)
    stored = [event for event in events if event["event"] != "progress"]
    assert [event["event"] for event in stored] == ["queued", "started", "image", "image", "succeeded"]
    assert [event["id"] for event in stored] == ["1", "2", "3", "4", "5"]
    told = json.loads(stored[3]["data"])
    assert told["run_id"] == run_id and told["kind"] == "image"
    assert (told["image_index"], told["image_url"]) == (1, f"/runs/{run_id}/images/1")
    assert (await house.client.get(told["image_url"])).status_code == 200
    for event in events:
        assert sorted(json.loads(event["data"])) == sorted(told)
        assert ("id" in event) == (event["event"] != "progress")


async def test_a_stream_resumes_after_the_last_event_seen(house):
    run_id = await submit(house, width=64, height=64)
    async with house.working():
        await house.ended(run_id)
    answer = await house.client.get(f"/runs/{run_id}/events", headers={"Last-Event-ID": "2"})
    assert [event["event"] for event in parse(answer.text)] == ["image", "succeeded"]
    for last in ("4", "400", "9" * 15):
        answer = await house.client.get(f"/runs/{run_id}/events", headers={"Last-Event-ID": last})
        assert (answer.status_code, answer.content) == (204, b"")


async def test_an_id_that_was_never_given_starts_from_the_beginning(house):
    run_id = await submit(house)
    await house.client.post(f"/runs/{run_id}/cancel")
    for last in ("", "x", "-1", "9" * 5000, "1.5"):
        answer = await house.client.get(f"/runs/{run_id}/events", headers={"Last-Event-ID": last})
        assert [event["event"] for event in parse(answer.text)] == ["queued", "cancelled"]


async def test_a_failed_run_ends_its_stream_with_the_error(house):
    run_id = await submit(house)
    async with house.working(outcome=failing("out_of_memory", "ask for less")):
        answer = await house.client.get(f"/runs/{run_id}/events")
    last = json.loads(parse(answer.text)[-1]["data"])
    assert last["error"] == {"code": "out_of_memory", "message": "ask for less"}


async def test_progress_comes_in_between_at_most_twice_a_second(house):
    run_id = await submit(house)
    (claim,) = await house.store.runs.claim("w", limit=1, lease_seconds=60)
    run = await house.store.runs.get(run_id)
    seen: list[tuple[float, RunEvent]] = []
    loop = asyncio.get_running_loop()

    async def follow() -> None:
        async for event in house.service.follow(run, after=2):
            if event is not None:
                seen.append((loop.time(), event))

    following = asyncio.create_task(follow())
    for done in range(1, 25):
        progress = Progress(run_id=run_id, fence=claim.fence, steps_done=done, steps_total=50, eta_seconds=3.0)
        await house.store.runs.pulse("w", [progress], lease_seconds=60, renew=False)
        await asyncio.sleep(0.04)
    await house.store.runs.cancel(run_id)
    house.service.stop_waiting()
    await asyncio.wait_for(following, 5)
    assert all(event.kind is RunEventKind.PROGRESS and event.sequence is None for _, event in seen)
    assert [event.steps_done for _, event in seen] == sorted({event.steps_done for _, event in seen})
    times = [at for at, _ in seen]
    assert len(seen) >= 2 and all(later - sooner >= 0.45 for sooner, later in pairwise(times))
    assert (seen[-1][1].steps_total, seen[-1][1].eta_seconds) == (50, 3.0)


async def test_a_stream_ends_with_its_run_when_that_is_deleted(house):
    run_id = await submit(house)
    following = asyncio.create_task(house.client.get(f"/runs/{run_id}/events"))
    await asyncio.sleep(0.2)
    assert (await house.client.delete(f"/runs/{run_id}")).status_code == 204
    answer = await asyncio.wait_for(following, 5)
    assert [event["event"] for event in parse(answer.text)] == ["queued"]


async def test_a_stream_outlives_a_database_that_is_away(house, monkeypatch):
    run_id = await submit(house)
    run = await house.store.runs.get(run_id)
    get, outages = house.store.runs.get, iter([True, True])

    async def get_or_fail(run_id):
        if next(outages, False):
            raise TryLater("the database is away", retry_after_seconds=1)
        return await get(run_id)

    monkeypatch.setattr(house.store.runs, "get", get_or_fail)
    await house.store.runs.cancel(run_id)
    kinds = [event.kind async for event in house.service.follow(run) if event is not None]
    assert kinds == [RunEventKind.QUEUED, RunEventKind.CANCELLED]


async def test_silence_is_broken_by_a_comment():
    ticks = iter([0.0, 5.0, 15.0, 20.0, 31.0, 40.0, 50.0])

    async def quiet():
        for _ in range(4):
            yield None

    stream = event_stream(quiet(), monotonic=lambda: next(ticks))
    chunks = [chunk async for chunk in stream.body_iterator]
    assert chunks == [b"retry: 2000\n\n", b": still here\n\n", b": still here\n\n"]


def test_an_event_is_one_block_whatever_its_text_holds():
    event = RunEvent(run_id="r", kind=RunEventKind.QUEUED, at=0.0, sequence=1)
    text = format_event(event).decode()
    assert text.startswith("event: queued\nid: 1\ndata: {") and text.endswith("}\n\n") and text.count("\n") == 4
    assert json.loads(parse(text)[0]["data"])["at"] == "1970-01-01T00:00:00.000Z"


def test_ids_are_read_with_care():
    assert [read_last_event_id(text) for text in (None, "", "7", "07", "x", "1" * 16)] == [0, 0, 7, 7, 0, 0]
    assert read_last_event_id("9" * 15) == 2**31 - 1
