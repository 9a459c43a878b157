"""No input makes a server error, and every answer is one that /openapi.json tells of: a small run of
the whole thing."""

from __future__ import annotations

from .fuzzing import fuzz


async def test_no_input_makes_a_server_error_or_an_answer_that_is_not_documented():
    findings = await fuzz(max_examples=2, seed=1)
    assert findings.exit_status == 0, findings.output
    assert findings.num_server_errors == 0, findings.statuses
    assert findings.num_requests >= 300
    assert findings.statuses[200] >= 10, "something gets through, so that more than refusals is tested"
