"""Promise 14: whatever is sent, what is accepted is within the limits."""

from __future__ import annotations

import contextlib
import json

from hypothesis import HealthCheck, given, settings
from hypothesis.database import InMemoryExampleDatabase

from safelight.api.dialects import native
from safelight.errors import MalformedBody
from tests.api.test_native import BODIES, LIMITS, assert_refused_or_within

from .figures import Figure, check


def limits(*, num_bodies: int) -> Figure:
    """Bodies of huge, negative, not finite, nested and mistyped values, through the door's own reading and checks."""
    num_read = num_accepted = 0

    @settings(
        max_examples=num_bodies,
        deadline=None,
        database=InMemoryExampleDatabase(),
        suppress_health_check=list(HealthCheck),
    )
    @given(BODIES, LIMITS)
    def send(body: dict[str, object], bounds: object) -> None:
        nonlocal num_read, num_accepted
        body = {"prompt": "x"} | body
        num_read += 1
        with contextlib.suppress(MalformedBody):
            num_accepted += assert_refused_or_within(native.parse_body(json.dumps(body).encode()), bounds)

    faults = []
    try:
        send()
    except AssertionError as error:
        faults = [f"accepted over a limit: {error}"[:300]]
    figure = f"{num_accepted} accepted, {len(faults)} over a limit; {num_read - num_accepted} refused"
    faults += check(num_accepted > 0, "nothing was accepted")
    return Figure("14", f"{num_read} bodies with huge, negative, not finite, nested values", figure, faults)
