"""Deployments, their versions, and the state of their workers."""

from __future__ import annotations

import pytest

from safelight.deployments import Defaults, Deployment, DeploymentStatus, Limits
from safelight.errors import InvalidFields, NotFound
from safelight.runs import SamplerName
from safelight.store import Store


def asked(name: str = "houses", **given: object) -> Deployment:
    return Deployment(**({"name": name, "version": 0, "model": "pinhole"} | given))  # type: ignore[arg-type]


async def test_deploying_again_makes_a_version_and_keeps_the_old(store: Store) -> None:
    first = await store.deployments.deploy(
        asked(defaults=Defaults(sampler=SamplerName.DDIM), limits=Limits(max_images=2))
    )
    second = await store.deployments.deploy(asked(revision="abc", embed_metadata=False))
    assert (first.version, second.version) == (1, 2)
    assert await store.deployments.get("houses") == second
    assert await store.deployments.get("houses", 1) == first
    assert await store.deployments.list() == [second]
    with pytest.raises(NotFound):
        await store.deployments.get("houses", 3)


async def test_what_is_undeployed_stays_for_its_runs_and_its_versions_go_on(store: Store) -> None:
    await store.deployments.deploy(asked())
    await store.deployments.undeploy("houses")
    for attempt in (store.deployments.get, store.deployments.resolve, store.deployments.undeploy):
        with pytest.raises(NotFound) as raised:
            await attempt("houses")
        assert raised.value.code == "deployment_not_found"
    assert (await store.deployments.get("houses", 1)).version == 1
    assert (await store.deployments.deploy(asked())).version == 2


@pytest.mark.parametrize("name", ["Houses", "", "a" * 64, "runs", "a/b", "houses\n"])
async def test_a_name_that_no_path_can_have_is_refused(store: Store, name: str) -> None:
    with pytest.raises(InvalidFields):
        await store.deployments.deploy(asked(name))


async def test_the_alias_finds_stable_diffusion_until_something_has_its_name(store: Store) -> None:
    with pytest.raises(NotFound):
        await store.deployments.resolve("dreambooth-webhook")
    await store.deployments.deploy(asked("sd", model="stable-diffusion"))
    assert (await store.deployments.resolve("dreambooth-webhook")).name == "sd"
    await store.deployments.deploy(asked("dreambooth-webhook"))
    assert (await store.deployments.resolve("dreambooth-webhook")).model == "pinhole"


async def test_the_worker_that_is_furthest_tells_the_status(store: Store) -> None:
    await store.deployments.deploy(asked())

    async def status() -> tuple[DeploymentStatus, str]:
        found = await store.deployments.get("houses")
        assert await store.deployments.list() == [found]
        return found.status, found.status_reason

    assert await status() == (DeploymentStatus.COLD, "")
    await store.deployments.record_placement("a", "houses", 1, DeploymentStatus.FAILED, "no weights")
    assert await status() == (DeploymentStatus.FAILED, "no weights")
    await store.deployments.record_placement("b", "houses", 1, DeploymentStatus.STARTING)
    assert await status() == (DeploymentStatus.STARTING, "")
    await store.deployments.record_placement("b", "houses", 1, DeploymentStatus.ACTIVE)
    assert await status() == (DeploymentStatus.ACTIVE, "")
    await store.deployments.forget_worker("b")
    assert await status() == (DeploymentStatus.FAILED, "no weights")
    await store.deployments.deploy(asked())
    assert await status() == (DeploymentStatus.COLD, "")


async def test_a_worker_not_heard_of_has_nothing_loaded(store: Store) -> None:
    await store.deployments.deploy(asked())

    async def silence(seconds: int) -> None:
        await store._database.write(
            lambda connection: connection.exec_driver_sql(f"UPDATE placements SET heard_at = heard_at - {seconds}")
        )

    await store.deployments.record_placement("a", "houses", 1, DeploymentStatus.ACTIVE)
    await silence(119)
    await store.runs.pulse("a", [], lease_seconds=60, renew=True)
    await silence(119)
    assert (await store.deployments.get("houses")).status is DeploymentStatus.ACTIVE
    await silence(2)
    assert (await store.deployments.get("houses")).status is DeploymentStatus.COLD


async def test_a_worker_tells_how_large_a_picture_may_be(store: Store) -> None:
    deployed = await store.deployments.deploy(Deployment(name="toy", version=0, model="pinhole"))
    assert (await store.deployments.resolve("toy")).max_pixels is None
    await store.deployments.record_placement(
        "w", "toy", deployed.version, DeploymentStatus.ACTIVE, max_pixels=300 * 1000
    )
    assert (await store.deployments.resolve("toy")).max_pixels == 300_000
