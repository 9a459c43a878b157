"""What a deployment lets a run ask for."""

from __future__ import annotations

import pytest

from safelight.deployments import Limits
from safelight.runs import RunParams


@pytest.mark.parametrize(
    ("limits", "asked", "nearest"),
    [
        (Limits(max_side=1020), 1024, 1016),
        (Limits(max_side=1020), 1016, None),
        (Limits(side_multiple=64, max_side=800), 832, 768),
        (Limits(side_multiple=64, min_side=90), 64, 128),
        (Limits(side_multiple=64, min_side=90), 128, None),
    ],
)
def test_no_side_is_over_its_limit_where_that_is_no_multiple(limits: Limits, asked: int, nearest: int | None) -> None:
    wrong = limits.check(RunParams(prompt="x", seed=1, height=asked, width=512))
    assert [(each.field, each.message.rpartition(" ")[2]) for each in wrong] == (
        [] if nearest is None else [("height", str(nearest))]
    )
