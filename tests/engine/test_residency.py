"""Who is on the device, by budgets and times alone."""

from __future__ import annotations

import pytest

from safelight.engine.residency import STAY, Failures, Move, Place, Plan, Residency
from safelight.errors import ModelError

MB = 10**6


def residency(*keys: str, device_mb: int = 100, host_mb: int = 0, **kept: float) -> Residency:
    """Models of 40 MB, settled and last used in this order at 1, 2, 3 ... seconds."""
    made = Residency(device_bytes=device_mb * MB, host_bytes=host_mb * MB)
    for at, key in enumerate(keys, 1):
        made.settle(key, 40 * MB, now=at, **kept)  # type: ignore[arg-type]
    return made


def make_room(made: Residency, num_mb: int, now: float = 10) -> tuple[Move, ...]:
    plan = made.plan("new", num_mb * MB, now=now)
    for move in plan.moves:
        made.carried_out(move)
    return plan.moves


def test_while_there_is_room_nothing_moves() -> None:
    assert residency("a", "b").plan("new", 20 * MB, now=9) == Plan()


def test_the_least_recently_used_model_goes_and_no_more_than_needed() -> None:
    made = residency("a", "b")
    made.begin_use("a", 5)
    made.end_use("a", 6)
    assert make_room(made, 40) == (Move("b", Place.NOWHERE),)
    assert made.place_of("a") is Place.DEVICE and made.place_of("b") is Place.NOWHERE


def test_a_model_goes_to_host_memory_where_there_is_some() -> None:
    made = residency("a", "b", host_mb=50)
    assert make_room(made, 40) == (Move("a", Place.HOST),)
    assert made.place_of("a") is Place.HOST
    made.settle("c", 40 * MB, now=11)
    assert make_room(made, 40) == (Move("a", Place.NOWHERE), Move("b", Place.HOST)), "there is room for one"


def test_two_models_swap_places_where_host_memory_has_room_for_one() -> None:
    made = residency("a", "b", device_mb=50, host_mb=50)
    made.carried_out(Move("a", Place.HOST))
    assert made.plan("a", 40 * MB, now=9).moves == (Move("b", Place.HOST),)


def test_a_model_that_does_not_fit_into_host_memory_is_dropped_and_nothing_for_it() -> None:
    made = residency("a", "b", host_mb=30)
    assert make_room(made, 40) == (Move("a", Place.NOWHERE),)


def test_a_pinned_model_stays() -> None:
    made = residency("a", "b")
    made.settle("a", 40 * MB, now=0, is_pinned=True)
    assert make_room(made, 40) == (Move("b", Place.NOWHERE),)


def test_what_pinned_models_leave_no_room_for_is_refused_with_the_remedy() -> None:
    made = residency("a", "b", is_pinned=True)
    with pytest.raises(ModelError, match=r"needs 40 MB .* 100 MB .* pinned deployments hold 80 MB; unpin one"):
        made.plan("new", 40 * MB, now=9)
    with pytest.raises(ModelError, match=r"needs 101 MB .* raise engine\.model_memory_mb"):
        residency().plan("new", 101 * MB, now=9)


def test_a_model_in_use_is_waited_for_and_never_moved() -> None:
    made = residency("a", "b")
    for key in ("a", "b"):
        made.begin_use(key, 5)
    assert made.plan("new", 40 * MB, now=9) == Plan(waits_for=frozenset({"a"}))
    with pytest.raises(AssertionError):
        made.carried_out(Move("a", Place.NOWHERE))
    made.end_use("b", 10)
    assert made.plan("new", 40 * MB, now=11) == Plan(moves=(Move("b", Place.NOWHERE),)), "the idle one goes first"


def test_a_model_in_use_may_stay_for_some_times_what_bringing_it_took() -> None:
    made = residency("a", "b", load_seconds=10.0)
    made.begin_use("a", 5)
    made.begin_use("b", 5)
    assert made.plan("new", 40 * MB, now=9).patience_seconds == 1 + STAY * 10.0 - 9
    assert made.plan("new", 40 * MB, now=99).patience_seconds == 0


def test_a_model_cools_down_after_its_last_run_and_a_pinned_one_never() -> None:
    made = residency("a", cooldown_seconds=5.0)
    made.settle("pinned", 40 * MB, now=1, cooldown_seconds=5.0, is_pinned=True)
    made.begin_use("a", 2)
    assert made.cooled(100) == ()
    made.end_use("a", 100)
    assert made.cooled(104) == ()
    assert made.cooled(105) == (Move("a", Place.NOWHERE),)


def test_a_model_that_nobody_will_ask_for_again_goes_when_it_is_idle_even_pinned() -> None:
    made = residency("a", is_pinned=True)
    made.begin_use("a", 2)
    made.retire("a")
    made.retire("unknown")
    assert made.cooled(3) == ()
    made.end_use("a", 4)
    assert made.cooled(4) == (Move("a", Place.NOWHERE),)


def test_more_than_the_budget_is_given_back_when_a_model_was_larger_than_it_looked() -> None:
    made = residency("a", "b")
    made.settle("c", 60 * MB, now=9)
    made.begin_use("c", 9)
    assert make_room(made, 0) == (Move("a", Place.NOWHERE),)


def test_a_model_that_failed_is_tried_again_later_each_time() -> None:
    failures = Failures()
    failures.record("a", "the file is damaged", 0.0)
    with pytest.raises(ModelError, match="the file is damaged; it is tried again in 2 s"):
        failures.check("a", 3.0)
    failures.check("a", 5.0)
    failures.check("b", 0.0)
    failures.record("a", "the file is damaged", 5.0)
    with pytest.raises(ModelError):
        failures.check("a", 14.9)
    failures.check("a", 15.0)
    for _ in range(20):
        failures.record("a", "the file is damaged", 100.0)
    failures.check("a", 700.0)
    failures.forget("a")
    failures.check("a", 100.0)
