"""No input makes a server error, and every answer is one that /openapi.json tells of: a small run of
the whole thing."""

from __future__ import annotations

from .fuzzing import fuzz


async def test_no_input_makes_a_server_error_or_an_answer_that_is_not_documented():
    findings = await fuzz(max_examples=2, num_asks=8, seed=1)
    assert findings.exit_status == 0, findings.output
    assert findings.num_server_errors == 0, findings.statuses
    assert findings.num_requests >= 1000
    assert findings.statuses[200] >= 10, "something gets through, so that more than refusals is tested"
    assert findings.num_drawn >= 5
    assert findings.num_pages >= 300
    unseen = [route for route, statuses in findings.pages.items() if statuses.total() == 0]
    assert unseen == [] and len(findings.pages) > 30, "everything of the dashboard was asked"
