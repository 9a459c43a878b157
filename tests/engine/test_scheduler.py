"""Which images travel next. No tensors: tasks are made bare."""

from __future__ import annotations

from typing import cast

from safelight.engine.models.base import ImageModel
from safelight.engine.samplers import scaled_linear_schedule, step_table
from safelight.engine.scheduler import PATIENCE, Scheduler
from safelight.engine.tasks import Assignment, Batch, BatchKey, ImageTask, LiveRun
from safelight.runs import RunParams, SamplerName

SMALL, LARGE = BatchKey("m@1", (4, 8, 8), (77, 8)), BatchKey("m@1", (4, 16, 16), (77, 8))
TABLE = step_table(SamplerName.EULER, 5, scaled_linear_schedule())


def make_task(name: str, *, key: BatchKey = SMALL, is_guided: bool = True) -> ImageTask:
    params = RunParams(prompt=name, guidance_scale=7.5 if is_guided else 1.0)
    run = LiveRun(Assignment(name, "m@1", params, (0,)), cast(ImageModel, None), 1, 0, 5)
    return ImageTask(run=run, index=0, seed=0, key=key, table=TABLE)


def scheduler_of(*tasks: ImageTask, max_rows: int = 16) -> Scheduler:
    scheduler = Scheduler(max_rows=max_rows)
    for task in tasks:
        scheduler.admit(task)
    return scheduler


def names(batch: Batch | None) -> list[str]:
    assert batch is not None
    return [task.run.run_id for task in batch.tasks]


def test_nothing_waiting_is_no_batch() -> None:
    assert Scheduler(max_rows=16).choose() is None


def test_guided_and_unguided_images_share_a_batch_up_to_the_row_limit() -> None:
    scheduler = scheduler_of(make_task("a"), make_task("b", is_guided=False), make_task("c"), max_rows=5)
    batch = scheduler.choose()
    assert names(batch) == ["a", "b", "c"]
    assert batch is not None and batch.num_rows == 5


def test_a_small_image_takes_the_room_that_a_large_one_cannot() -> None:
    scheduler = scheduler_of(make_task("a"), make_task("b"), make_task("c", is_guided=False), max_rows=3)
    assert names(scheduler.choose()) == ["a", "c"]


def test_shapes_do_not_mix() -> None:
    scheduler = scheduler_of(make_task("a"), make_task("b", key=LARGE), make_task("c"))
    assert names(scheduler.choose()) == ["a", "c"]


def test_the_earliest_go_first_and_nobody_starves() -> None:
    tasks = [make_task(name) for name in "abcdef"]
    scheduler = scheduler_of(*tasks, make_task("large", key=LARGE), max_rows=4)
    batches = [names(scheduler.choose()) for _ in range(10 * PATIENCE)]
    assert batches[: PATIENCE - 1] == [["a", "b"]] * (PATIENCE - 1)
    for name in [*"abcdef", "large"]:
        served = [place for place, batch in enumerate(batches) if name in batch]
        gaps = [later - earlier for earlier, later in zip([-1, *served], [*served, len(batches)], strict=True)]
        assert max(gaps) <= PATIENCE + 4, (name, served)


def test_a_batch_of_the_same_images_keeps_its_order() -> None:
    scheduler = scheduler_of(*(make_task(name) for name in "abcd"))
    assert {tuple(names(scheduler.choose())) for _ in range(3 * PATIENCE)} == {tuple("abcd")}


def test_a_suspect_travels_alone_and_first() -> None:
    tasks = [make_task(name) for name in "abc"]
    scheduler = scheduler_of(*tasks)
    tasks[1].is_suspect = True
    assert names(scheduler.choose()) == ["b"]
    tasks[1].is_suspect = False
    assert names(scheduler.choose()) == ["a", "b", "c"]


def test_a_batch_that_did_not_fit_halves_the_rows_of_its_shape_only() -> None:
    tasks = [make_task(name) for name in "abcdefgh"]
    large = [make_task(name, key=LARGE) for name in "xy"]
    scheduler = scheduler_of(*tasks, *large)
    batch = scheduler.choose()
    assert batch is not None and batch.num_rows == 16
    scheduler.halve_rows(batch)
    smaller = scheduler.choose()
    assert smaller is not None and smaller.num_rows == 8
    assert scheduler.max_rows(LARGE) == 16


def test_an_image_over_the_limit_by_itself_still_travels() -> None:
    assert names(scheduler_of(make_task("a"), max_rows=1).choose()) == ["a"]


def test_a_removed_image_is_gone_and_removing_twice_is_harmless() -> None:
    task = make_task("a")
    scheduler = scheduler_of(task)
    scheduler.remove(task)
    scheduler.remove(task)
    assert scheduler.choose() is None and len(scheduler) == 0
