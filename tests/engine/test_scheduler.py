"""Which images travel next. No tensors: tasks are made bare."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import pytest

from safelight.engine.costs import ENOUGH, Costs
from safelight.engine.models.base import ImageModel
from safelight.engine.samplers import scaled_linear_schedule, step_table
from safelight.engine.scheduler import RECOVERY_STEPS, Scheduler
from safelight.engine.tasks import Assignment, Batch, BatchKey, ImageTask, LiveRun
from safelight.runs import RunParams, SamplerName

SMALL, LARGE = BatchKey("m@1", (4, 8, 8), (77, 8)), BatchKey("m@1", (4, 16, 16), (77, 8))
TABLE = step_table(SamplerName.EULER, 5, scaled_linear_schedule())


def make_task(
    name: str,
    *,
    key: BatchKey = SMALL,
    is_guided: bool = True,
    num_steps: int = 5,
    key_id: str | None = None,
    weight: float = 1.0,
    priority: int = 0,
    deterministic: bool = False,
    deadline: float | None = None,
) -> ImageTask:
    params = RunParams(prompt=name, guidance_scale=7.5 if is_guided else 1.0, deterministic=deterministic)
    assignment = Assignment(
        name, "m@1", params, (0,), key_id=key_id, weight=weight, priority=priority, deadline_seconds=deadline
    )
    run = LiveRun(assignment, cast(ImageModel, None), 1, 0, num_steps)
    table = replace(TABLE, columns=TABLE.columns[[0] * num_steps])
    return ImageTask(run=run, index=0, seed=0, key=key, table=table)


def images_of(run: ImageTask, count: int) -> list[ImageTask]:
    """The run with so many images like this one."""
    live = replace(run.run, assignment=replace(run.run.assignment, indices=tuple(range(count))))
    return [replace(run, run=live, index=index) for index in range(count)]


def measured(row_seconds: float = 1.0, *, rows: int = 2, keys: tuple[BatchKey, ...] = (SMALL, LARGE)) -> Costs:
    """A large picture costs four small ones."""
    costs = Costs()
    for key in keys:
        costs.record_step(key, rows, rows * row_seconds * (4.0 if key is LARGE else 1.0))
    return costs


def learned(seconds_of_rows: dict[int, float]) -> Costs:
    """Of small pictures."""
    costs = Costs()
    for rows, seconds in seconds_of_rows.items():
        for _ in range(ENOUGH):
            costs.record_step(SMALL, rows, seconds)
    return costs


def serve(
    scheduler: Scheduler, num_steps: int, costs: Costs, before: Callable[[int], None] = lambda step: None
) -> list[list[str]]:
    """The names of the batches of so many steps, each charged with what it costs. Images never end."""
    served = []
    for step in range(num_steps):
        before(step)
        batch = scheduler.choose()
        assert batch is not None
        scheduler.charge(batch, costs.step_seconds(batch.key, batch.num_rows) or 1.0)
        served.append([task.run.run_id for task in batch.tasks])
    return served


def scheduler_of(*tasks: ImageTask, max_rows: int = 16, costs: Costs | None = None) -> Scheduler:
    scheduler = Scheduler(max_rows=max_rows, costs=costs)
    for task in tasks:
        scheduler.admit(task)
    return scheduler


def names(batch: Batch | None) -> list[str]:
    assert batch is not None
    return [task.run.run_id for task in batch.tasks]


def one_short_after_another(scheduler: Scheduler) -> Callable[[int], None]:
    """Before every fourth step the short task that is there gives way to a new one."""
    there: list[ImageTask] = []

    def bring_another(step: int) -> None:
        if step % 4 == 0:
            for task in there:
                scheduler.remove(task)
            there[:] = [make_task(f"short {step}", num_steps=4)]
            scheduler.admit(there[0])

    return bring_another


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


def test_a_deterministic_image_travels_alone_and_keeps_nobody_waiting_for_long() -> None:
    costs = measured()
    scheduler = scheduler_of(
        make_task("a", key_id="a"),
        make_task("d", key_id="d", deterministic=True),
        make_task("c", key_id="c"),
        costs=costs,
    )
    served = serve(scheduler, 40, costs)
    assert {tuple(batch) for batch in served} == {("a", "c"), ("d",)}
    assert 10 <= served.count(["d"]) <= 30


def test_shapes_do_not_mix() -> None:
    scheduler = scheduler_of(make_task("a"), make_task("b", key=LARGE), make_task("c"))
    assert names(scheduler.choose()) == ["a", "c"]


def test_short_work_passes_long_work_that_came_before_it() -> None:
    costs = measured()
    scheduler = scheduler_of(make_task("long", num_steps=50), make_task("short", num_steps=4), max_rows=2, costs=costs)
    assert serve(scheduler, 4, costs) == [["short"]] * 4


def test_long_work_is_passed_for_a_while_only() -> None:
    costs = measured()
    scheduler = scheduler_of(make_task("long", num_steps=12), max_rows=2, costs=costs)
    served = [names for [names] in serve(scheduler, 400, costs, before=one_short_after_another(scheduler))]
    assert "long" in served[:200], "sixteen times its own work after it came it is the earliest due"
    assert served[200:] == ["long"] * 200, "a stream of newcomers holds it up no longer"


def test_two_keys_share_the_device_whatever_they_ask() -> None:
    costs = measured()
    crowd = [make_task(f"a{number}", key_id="a") for number in range(10)]
    scheduler = scheduler_of(*crowd, make_task("b", key_id="b"), max_rows=2, costs=costs)
    served = Counter(name[0] for [name] in serve(scheduler, 200, costs))
    assert served == {"a": 100, "b": 100}


def test_weights_are_shares() -> None:
    costs = measured()
    heavy, light = make_task("heavy", key_id="h", weight=3.0), make_task("light", key_id="l")
    scheduler = scheduler_of(heavy, light, max_rows=2, costs=costs)
    assert Counter(name for [name] in serve(scheduler, 400, costs)) == {"heavy": 300, "light": 100}


@pytest.mark.parametrize("key", [SMALL, LARGE])
def test_a_higher_priority_goes_first_and_leaves_what_room_there_is(key: BatchKey) -> None:
    costs = measured(rows=4)
    usual = [make_task(f"usual {number}", key_id="a") for number in range(2)]
    scheduler = scheduler_of(*usual, max_rows=4, costs=costs)
    serve(scheduler, 3, costs)
    scheduler.admit(make_task("urgent", key=key, key_id="a", priority=1))
    room = {"usual 0"} if key is SMALL else set()
    assert [set(batch) for batch in serve(scheduler, 5, costs)] == [{"urgent"} | room] * 5


def test_who_returns_from_idleness_starts_level_and_owns_no_arrears() -> None:
    costs = measured()
    scheduler = scheduler_of(make_task("busy", key_id="a"), max_rows=2, costs=costs)
    serve(scheduler, 100, costs)
    scheduler.admit(make_task("back", key_id="b"))
    served = Counter(name for [name] in serve(scheduler, 20, costs))
    assert served == {"busy": 10, "back": 10}


def test_who_waits_with_a_lower_priority_gives_newcomers_no_head_start() -> None:
    costs = measured()
    busy = make_task("busy", key_id="a", priority=1)
    scheduler = scheduler_of(busy, make_task("low", key=LARGE, key_id="c"), max_rows=2, costs=costs)
    assert Counter(name for [name] in serve(scheduler, 100, costs)) == {"busy": 100}
    scheduler.admit(make_task("new", key_id="d", priority=1))
    served = Counter(name for [name] in serve(scheduler, 20, costs))
    assert served == {"busy": 10, "new": 10}


@pytest.mark.parametrize("crowd", [{"a": [SMALL], "b": [LARGE]}, {"a": [SMALL, LARGE], "b": [LARGE]}])
def test_keys_share_the_device_over_shapes_of_different_cost(crowd: dict[str, list[BatchKey]]) -> None:
    costs = measured()
    tasks = [make_task(f"{key_id}{key is LARGE}", key=key, key_id=key_id) for key_id in crowd for key in crowd[key_id]]
    scheduler = scheduler_of(*tasks, max_rows=2, costs=costs)
    seconds = Counter[str]()
    for [name] in serve(scheduler, 1000, costs):
        seconds[name[0]] += 8 if name.endswith("True") else 2
    assert abs(seconds["a"] / seconds.total() - 0.5) < 0.05, seconds


def test_the_earlier_deadline_goes_first_within_a_key() -> None:
    costs = measured()
    usual = make_task("usual", num_steps=10)
    late, soon = make_task("late", num_steps=50, deadline=400.0), make_task("soon", num_steps=50, deadline=70.0)
    scheduler = scheduler_of(late, soon, usual, max_rows=2, costs=costs)
    served = [name for [name] in serve(scheduler, 30, costs)]
    assert served == ["soon"] * 30
    scheduler.remove(soon)
    assert serve(scheduler, 3, costs) == [["usual"]] * 3, "due at 320, before 400"


def test_a_deadline_brings_nobody_before_another_key() -> None:
    costs = measured()
    urgent, patient = make_task("urgent", key_id="a", deadline=1.0), make_task("patient", key_id="b")
    served = Counter(name for [name] in serve(scheduler_of(urgent, patient, max_rows=2, costs=costs), 100, costs))
    assert served == {"urgent": 50, "patient": 50}


def test_a_short_request_does_not_wait_for_another_shape() -> None:
    costs = measured()
    many = [make_task(f"long {number}", num_steps=50) for number in range(6)]
    scheduler = scheduler_of(*many, costs=costs)
    serve(scheduler, 10, costs)
    scheduler.admit(make_task("short", key=LARGE, num_steps=2))
    assert serve(scheduler, 2, costs) == [["short"]] * 2


def test_long_work_of_another_shape_waits_for_a_while_only() -> None:
    costs = measured()
    scheduler = scheduler_of(make_task("long", key=LARGE, num_steps=4), costs=costs)
    served = [names for [names] in serve(scheduler, 400, costs, before=one_short_after_another(scheduler))]
    assert served[:100] != ["long"] * 100
    assert served[320:] == ["long"] * 80, "by then it is the earliest due, whatever comes"


def test_a_batch_grows_only_as_far_as_it_pays() -> None:
    costs = learned({2: 1.0, 4: 1.6, 8: 2.7, 16: 5.3})
    batch = scheduler_of(*(make_task(name) for name in "abcdefgh"), costs=costs).choose()
    assert batch is not None and batch.num_rows == 8, "eight rows have 98% of sixteen's rate, four 83%"


def test_a_batch_is_no_larger_than_pays_with_those_that_are_there() -> None:
    costs = learned({2: 1.0, 4: 1.5, 6: 2.6, 8: 2.5})
    batch = scheduler_of(*(make_task(name) for name in "abc"), costs=costs).choose()
    assert batch is not None and batch.num_rows == 4, "six rows take as long as four and two"
    batch = scheduler_of(*(make_task(name) for name in "abcd"), costs=costs).choose()
    assert batch is not None and batch.num_rows == 8


def test_longer_company_slows_a_short_image_by_so_much_only() -> None:
    costs = learned({2: 1.0, 4: 1.5, 8: 2.5, 16: 4.6})
    crowd = [make_task(f"long {number}", num_steps=40) for number in range(4)]
    scheduler = scheduler_of(*crowd, make_task("short", num_steps=10), costs=costs)
    assert names(scheduler.choose()) == ["long 0", "short"], "four rows take 1.5 times as long as two, eight 2.5 times"
    equals = [make_task(f"equal {number}", num_steps=12) for number in range(3)]
    for task in equals:
        scheduler.admit(task)
    assert names(scheduler.choose()) == ["short", "equal 0", "equal 1", "equal 2"], "those may slow it"


def test_a_larger_batch_than_any_before_is_tried() -> None:
    costs = measured(rows=2)
    scheduler = scheduler_of(make_task("long", num_steps=50), make_task("short"), costs=costs)
    assert names(scheduler.choose()) == ["long", "short"], "nobody knows yet that it would be slow"


def test_nobody_is_spared_company_where_more_wait_than_one_batch_is_worth() -> None:
    costs = learned({2: 1.0, 4: 1.5, 8: 2.5, 16: 5.0})
    crowd = [make_task(f"long {number}", num_steps=40) for number in range(7)]
    batch = scheduler_of(*crowd, make_task("short", num_steps=10), costs=costs).choose()
    assert batch is not None and batch.num_rows == 8 and "short" in names(batch)


def test_long_images_keep_their_order_among_themselves() -> None:
    costs = measured()
    usual = [make_task(f"usual {number}", num_steps=10) for number in range(30)]
    scheduler = scheduler_of(*usual, max_rows=2, costs=costs)
    for task in usual:
        scheduler.remove(task)
    longer = make_task("longest", num_steps=50), make_task("long", num_steps=30)
    for task in longer:
        scheduler.admit(task)
    assert names(scheduler.choose()) == ["longest"], "nothing is later due than what is usual"


@pytest.fixture
def used_to_short_runs() -> Scheduler:
    """One row at a time, of runs that take 10 s."""
    tasks = [make_task(f"usual {number}") for number in range(20)]
    scheduler = scheduler_of(*tasks, max_rows=2, costs=measured())
    for task in tasks:
        scheduler.remove(task)
    return scheduler


def test_the_images_of_one_run_are_due_together(used_to_short_runs: Scheduler) -> None:
    crowd = images_of(make_task("many", num_steps=50), 4)
    for task in (*crowd, make_task("one", num_steps=50, deadline=1000.0)):
        used_to_short_runs.admit(task)
    for task in crowd:
        assert names(used_to_short_runs.choose()) == ["many"], "due at 784, before 866"
        used_to_short_runs.remove(task)


def test_a_run_of_many_images_counts_once_in_what_is_usual(used_to_short_runs: Scheduler) -> None:
    crowd = images_of(make_task("many", num_steps=50), 8)
    for task in crowd:
        used_to_short_runs.admit(task)
    for task in crowd:
        used_to_short_runs.remove(task)
    used_to_short_runs.admit(make_task("long", num_steps=50))
    used_to_short_runs.admit(make_task("urgent", num_steps=50, deadline=1540.0))
    assert names(used_to_short_runs.choose()) == ["long"], "due at 1442: some 90 s are usual, not the 100 that it takes"


def test_a_copy_chooses_the_same_and_leaves_the_original_alone() -> None:
    costs = measured()
    tasks = [make_task(f"{key_id}{number}", key_id=key_id) for key_id in "ab" for number in range(3)]
    scheduler = scheduler_of(*tasks, make_task("large", key=LARGE), max_rows=4, costs=costs)
    ahead = scheduler.copy()
    assert serve(ahead, 50, costs) == serve(scheduler, 50, costs)
    assert not set(ahead) & set(scheduler)


def test_a_batch_of_the_same_images_keeps_its_order() -> None:
    costs = measured()
    scheduler = scheduler_of(*(make_task(name, key_id=name) for name in "abcd"), costs=costs)
    assert {tuple(batch) for batch in serve(scheduler, 24, costs)} == {tuple("abcd")}


def test_a_suspect_travels_alone_and_first() -> None:
    tasks = [make_task(name) for name in "abc"]
    scheduler = scheduler_of(*tasks)
    tasks[1].is_suspect = True
    assert names(scheduler.choose()) == ["b"]
    tasks[1].is_suspect = False
    assert names(scheduler.choose()) == ["a", "b", "c"]


def test_a_batch_that_did_not_fit_halves_the_rows_of_its_shape_only() -> None:
    tasks = [make_task(name) for name in "abcdefgh"]
    scheduler = scheduler_of(*tasks)
    batch = scheduler.choose()
    assert batch is not None and batch.num_rows == 16
    scheduler.halve_rows(batch)
    smaller = scheduler.choose()
    assert smaller is not None and smaller.num_rows == 8
    assert scheduler.max_rows(LARGE) == 16


def test_room_that_was_lost_to_memory_comes_back_slowly() -> None:
    tasks = [make_task(name) for name in "abcdefgh"]
    scheduler = scheduler_of(*tasks)
    batch = scheduler.choose()
    assert batch is not None
    scheduler.halve_rows(batch)
    sizes = []
    for _ in range(5 * RECOVERY_STEPS):
        batch = scheduler.choose()
        assert batch is not None
        sizes.append(batch.num_rows)
        scheduler.widen_rows(batch)
    assert list(dict.fromkeys(sizes)) == [8, 10, 12, 14, 16]
    assert sizes.count(8) == RECOVERY_STEPS


def test_a_wider_batch_that_fails_again_goes_back_to_what_fitted_and_waits_longer() -> None:
    scheduler = scheduler_of(*(make_task(name) for name in "abcdefgh"))
    sizes = []
    for _ in range(4 * RECOVERY_STEPS):
        batch = scheduler.choose()
        assert batch is not None
        sizes.append(batch.num_rows)
        if batch.num_rows > 8:
            scheduler.halve_rows(batch)
        else:
            scheduler.widen_rows(batch)
    assert sizes.count(8) == len(sizes) - 3 and sizes.count(10) == 2, "one try after one wait, one after twice that"


def test_an_image_over_the_limit_by_itself_still_travels() -> None:
    assert names(scheduler_of(make_task("a"), max_rows=1).choose()) == ["a"]


def test_a_removed_image_is_gone_and_removing_twice_is_harmless() -> None:
    task = make_task("a")
    scheduler = scheduler_of(task)
    scheduler.remove(task)
    scheduler.remove(task)
    assert scheduler.choose() is None and len(scheduler) == 0
