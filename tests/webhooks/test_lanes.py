from __future__ import annotations

from safelight.runs import Delivery, DeliveryStatus
from safelight.webhooks.lanes import MAX_UNPROVEN_WAITING, Lanes


def delivery(name: str) -> Delivery:
    return Delivery(
        id=name,
        event_id=name,
        run_id=name,
        project="default",
        url="https://example.com",
        status=DeliveryStatus.PENDING,
        created_at=0,
        next_attempt_at=0,
    )


def started(lanes: Lanes, now: float = 0.0) -> list[str]:
    names = []
    while (following := lanes.start_next(now)) is not None:
        names.append(following[1].id)
    return names


def test_a_host_gets_two_at_once_and_the_others_do_not_wait_for_it() -> None:
    lanes = Lanes(max_per_host=2, max_total=10)
    for number in range(5):
        lanes.add("slow", delivery(f"slow {number}"), 100)
    lanes.add("good", delivery("good"), 100)
    assert sorted(started(lanes)) == ["good", "slow 0", "slow 1"]
    lanes.finish("slow", is_proven=True)
    assert started(lanes) == ["slow 2"]


def test_hosts_take_turns_when_places_are_short() -> None:
    lanes = Lanes(max_per_host=2, max_total=1)
    for host in "abc":
        for number in range(2):
            lanes.add(host, delivery(f"{host}{number}"), 100)
    order = []
    while (following := lanes.start_next(0)) is not None:
        order.append(following[1].id)
        lanes.finish(following[0], is_proven=True)
    assert order == ["a0", "b0", "c0", "a1", "b1", "c1"]


def test_what_waited_past_its_lease_is_left_for_the_next_claim() -> None:
    lanes = Lanes(max_per_host=1, max_total=10)
    lanes.add("host", delivery("first"), 10)
    lanes.add("host", delivery("late"), 10)
    lanes.add("host", delivery("in time"), 20)
    assert started(lanes, now=0) == ["first"]
    lanes.finish("host", is_proven=True)
    assert started(lanes, now=15) == ["in time"]


def test_a_full_lane_asks_for_no_more_until_it_is_worked_off_by_half() -> None:
    lanes = Lanes(max_per_host=1, max_total=100, max_waiting_per_host=4)
    for number in range(4):
        assert lanes.full_hosts() == set()
        lanes.add("host", delivery(str(number)), 100)
    lanes.add("other", delivery("alone"), 100)
    assert lanes.full_hosts() == {"host"} and not lanes.has_room("host")
    assert started(lanes) == ["0", "alone"] and lanes.full_hosts() == set()
    assert not lanes.has_room("host")
    lanes.finish("host", is_proven=True)
    assert started(lanes) == ["1"] and lanes.has_room("host")


def test_what_waits_is_counted_and_can_be_taken_out() -> None:
    lanes = Lanes(max_per_host=1, max_total=100)
    for number in range(3):
        lanes.add("host", delivery(str(number)), 10 if number == 1 else 100)
    assert started(lanes) == ["0"] and lanes.num_waiting == 2
    lanes.finish("host", is_proven=True)
    assert started(lanes, now=50) == ["2"] and lanes.num_waiting == 0
    lanes.add("host", delivery("3"), 100)
    lanes.add("idle", delivery("4"), 100)
    assert [each.id for each in lanes.clear()] == ["3", "4"]
    assert lanes.num_waiting == 0 and started(lanes) == []
    lanes.finish("host", is_proven=True)
    assert not lanes._lanes


def test_idle_hosts_are_forgotten() -> None:
    lanes = Lanes(max_per_host=1, max_total=1)
    for number in range(1000):
        lanes.add(f"host {number}", delivery(str(number)), 100)
        following = lanes.start_next(0)
        assert following is not None
        lanes.finish(following[0], is_proven=True)
    assert not lanes._lanes


def test_proven_hosts_find_a_place_however_many_others_hang() -> None:
    lanes = Lanes(max_per_host=2, max_total=4)
    lanes.add("good", delivery("good 0"), 100)
    assert started(lanes) == ["good 0"]
    lanes.finish("good", is_proven=True)
    for number in range(10):
        lanes.add(f"dead {number}", delivery(f"dead {number}"), 100)
    assert len(started(lanes)) == 3
    lanes.add("good", delivery("good 1"), 100)
    assert started(lanes) == ["good 1"]
    lanes.finish("good", is_proven=False)
    lanes.add("good", delivery("good 2"), 100)
    assert started(lanes) == [], "one failure, and it has to prove itself again"


def test_hosts_that_proved_themselves_and_then_hang_give_their_places_back() -> None:
    lanes = Lanes(max_per_host=2, max_total=4)
    for host in ("good", "moody 0", "moody 1"):
        lanes.add(host, delivery(host), 100)
        started(lanes)
        lanes.finish(host, is_proven=True)
    for number in range(4):
        lanes.add(f"moody {number % 2}", delivery(f"hangs {number}"), 100)
    assert len(started(lanes)) == 4
    lanes.add("good", delivery("good again"), 100)
    assert started(lanes) == []
    gave_back = [lanes.doubt(f"moody {number % 2}") for number in range(4)]
    assert gave_back == [True] * 4
    lanes.add("moody 0", delivery("hangs too"), 100)
    assert started(lanes) == ["good again"]
    for number in range(4):
        lanes.finish(f"moody {number % 2}", is_proven=False, gave_back=True)
    lanes.finish("good", is_proven=True)
    assert started(lanes) == ["hangs too"]
    assert not lanes.doubt("moody 0"), "it has not proven itself since"


def test_little_is_claimed_for_a_host_that_is_not_proven() -> None:
    lanes = Lanes(max_per_host=1, max_total=10)
    for number in range(MAX_UNPROVEN_WAITING):
        lanes.add("new", delivery(str(number)), 100)
    assert lanes.full_hosts() == {"new"}
    assert started(lanes) == ["0"]
    lanes.finish("new", is_proven=True)
    for number in range(10):
        lanes.add("new", delivery(str(number)), 100)
    assert lanes.full_hosts() == set()
