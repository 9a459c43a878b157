"""`runs replay`, beside a worker that draws what it is told to."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from safelight.deployments import Deployment
from safelight.pictures import encode_picture
from safelight.runs import (
    Claim,
    ImageRecord,
    InputName,
    NewRun,
    Outcome,
    OutputFormat,
    Provenance,
    RunInput,
    RunParams,
    RunStatus,
)
from safelight.store import Store

from .conftest import House

HERE = Provenance(safelight="1", torch="2", device="cpu", dtype="float32", num_threads=1)
THERE = Provenance(safelight="1", torch="3", device="cpu", dtype="float32", num_threads=1, backend="torch")


async def draw(store: Store, claim: Claim, colour: int, provenance: Provenance) -> None:
    """Both pictures of a run in one colour."""
    images = []
    for index, seed in enumerate(claim.run.params.seeds):
        data = encode_picture(np.full((8, 8, 3), colour, np.uint8), OutputFormat.PNG)
        stored = await store.images.write(claim.run.id, index, claim.fence, OutputFormat.PNG, data)
        size, sha256 = stored.num_bytes, stored.sha256
        images.append(
            ImageRecord(
                index=index, seed=seed, output_format=OutputFormat.PNG, path=stored.path, num_bytes=size, sha256=sha256
            )
        )
    outcome = Outcome(status=RunStatus.SUCCEEDED, run_time_ms=1.0, images=tuple(images), provenance=provenance)
    await store.runs.finish(claim, outcome)


@pytest.fixture
def first(house: House) -> str:
    """A run whose pictures have colour 100."""

    async def make(store: Store) -> str:
        await store.deployments.deploy(Deployment(name="toy", version=0, model="pinhole"))
        params = RunParams(prompt="a red boat", seed=7, num_images_per_prompt=2, deterministic=True)
        new = NewRun(
            id=str(uuid.uuid4()), project="p", key_id=None, deployment="toy", deployment_version=1, params=params
        )
        await store.runs.create(new, max_queued=10)
        [claim] = await store.runs.claim("worker", limit=1, lease_seconds=60)
        await draw(store, claim, 100, HERE)
        return new.id

    return house.store(make)


@pytest.fixture
def worker(house: House) -> Callable[[int], threading.Thread]:
    """Draws the next run in a colour, in a thread of its own."""

    def start(colour: int) -> threading.Thread:
        async def work(store: Store) -> None:
            with store.notifications.listen("queue") as listener:
                while not (claims := await store.runs.claim("worker", limit=1, lease_seconds=60)):
                    await listener.wait(0.05)
            await draw(store, claims[0], colour, THERE)

        thread = threading.Thread(target=lambda: house.store(work), daemon=True)
        thread.start()
        return thread

    return start


def test_a_run_that_comes_out_the_same_is_no_failure(
    house: House, first: str, worker: Callable[[int], threading.Thread]
) -> None:
    worker(100)
    result = house.ok("runs", "replay", first, "--json")
    told = json.loads(result.stdout)
    assert [picture["max_difference"] for picture in told["pictures"]] == [0, 0]
    assert [picture["sha256"] for picture in told["pictures"]] == [
        picture["sha256_again"] for picture in told["pictures"]
    ]
    assert told["changed"] == ["torch was 2, is 3"]
    again = json.loads(house.ok("runs", "show", told["replay"], "--json").stdout)
    assert (again["params"]["seed"], again["params"]["deterministic"]) == (7, True)
    assert again["deployment_version"] == 1


def test_a_run_that_comes_out_otherwise_fails_by_how_much(
    house: House, first: str, worker: Callable[[int], threading.Thread]
) -> None:
    worker(103)
    result = house.run("runs", "replay", first)
    assert result.exit_code == 1
    assert "by up to 3/255" in result.stderr and "torch was 2, is 3" in result.stderr


def test_a_difference_may_be_allowed(house: House, first: str, worker: Callable[[int], threading.Thread]) -> None:
    worker(103)
    house.ok("runs", "replay", first, "--tolerance", "3")


def test_a_run_from_a_picture_is_drawn_from_the_same_one_again(
    house: House, worker: Callable[[int], threading.Thread]
) -> None:
    async def make(store: Store) -> str:
        await store.deployments.deploy(Deployment(name="toy", version=0, model="pinhole"))
        run_id, inputs = str(uuid.uuid4()), []
        for index, name in enumerate(InputName):
            kept = await store.images.write(run_id, index, 0, OutputFormat.PNG, name.encode())
            inputs.append(RunInput(name=name, path=kept.path, num_bytes=kept.num_bytes, sha256=kept.sha256))
        params = RunParams(prompt="a red boat", seed=7, strength=0.5)
        new = NewRun(
            id=run_id,
            project="p",
            key_id=None,
            deployment="toy",
            deployment_version=1,
            params=params,
            inputs=tuple(inputs),
        )
        await store.runs.create(new, max_queued=10)
        [claim] = await store.runs.claim("worker", limit=1, lease_seconds=60)
        await draw(store, claim, 100, replace(HERE, backend="openvino 1"))
        return run_id

    first = house.store(make)
    worker(100)
    told = json.loads(house.ok("runs", "replay", first, "--json").stdout)
    assert told["changed"] == ["torch was 2, is 3", "backend was openvino 1, is torch"]
    house.ok("runs", "rm", first)

    async def read(store: Store) -> dict[str, bytes]:
        return {each.name: await store.images.read(each.path) for each in await store.runs.inputs(told["replay"])}

    assert house.store(read) == {name: name.encode() for name in InputName}, "its own copies"


def test_a_run_without_pictures_cannot_be_compared(house: House, first: str) -> None:
    house.ok("runs", "rm", first)
    assert "there is no such run" in house.refused("runs", "replay", first)


def test_without_a_server_it_says_so_in_time(house: House, first: str) -> None:
    result = house.run("runs", "replay", first, "--timeout", "0.05")
    assert result.exit_code == 1 and "is a server running on this data folder?" in result.stderr
