from __future__ import annotations

from safelight.runs import Delivery, DeliveryStatus
from safelight.webhooks.lanes import Lanes


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
    lanes.finish("slow")
    assert started(lanes) == ["slow 2"]


def test_hosts_take_turns_when_places_are_short() -> None:
    lanes = Lanes(max_per_host=2, max_total=1)
    for host in "abc":
        for number in range(2):
            lanes.add(host, delivery(f"{host}{number}"), 100)
    order = []
    while (following := lanes.start_next(0)) is not None:
        order.append(following[1].id)
        lanes.finish(following[0])
    assert order == ["a0", "b0", "c0", "a1", "b1", "c1"]


def test_what_waited_past_its_lease_is_left_for_the_next_claim() -> None:
    lanes = Lanes(max_per_host=1, max_total=10)
    lanes.add("host", delivery("first"), 10)
    lanes.add("host", delivery("late"), 10)
    lanes.add("host", delivery("in time"), 20)
    assert started(lanes, now=0) == ["first"]
    lanes.finish("host")
    assert started(lanes, now=15) == ["in time"]


def test_the_memory_of_one_lane_is_bounded() -> None:
    lanes = Lanes(max_per_host=5, max_total=100, max_waiting_per_host=3)
    for number in range(10):
        lanes.add("host", delivery(str(number)), 100)
    assert started(lanes) == ["0", "1", "2"]


def test_idle_hosts_are_forgotten() -> None:
    lanes = Lanes(max_per_host=1, max_total=1)
    for number in range(1000):
        lanes.add(f"host {number}", delivery(str(number)), 100)
        following = lanes.start_next(0)
        assert following is not None
        lanes.finish(following[0])
    assert not lanes._lanes
