"""/metrics: what it counts, who may read it, and that documents and dashboard name what there is."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from safelight.api.metering import Meter
from safelight.keys import Scope
from safelight.metrics import METRICS, EngineFigures, Kind
from safelight.store import measures

from .house import failing

DOCS = Path(__file__).parent.parent.parent / "docs"
SMALL = {"width": 64, "height": 64}
ADDED = {Kind.HISTOGRAM: ("_bucket", "_sum", "_count"), Kind.COUNTER: ("",), Kind.GAUGE: ("",)}


def names_of_series() -> set[str]:
    return {metric.name + end for metric in METRICS for end in ADDED[metric.kind]}


async def scrape(house) -> dict[tuple[str, ...], float]:
    """Name and the values of the labels, in the order of their names -> value."""
    answer = await house.client.get("/metrics")
    assert answer.status_code == 200
    samples = [sample for family in text_string_to_metric_families(answer.text) for sample in family.samples]
    return {(each.name, *(value for _, value in sorted(each.labels.items()))): each.value for each in samples}


@pytest.fixture(autouse=True)
def nothing_has_to_settle(monkeypatch):
    monkeypatch.setattr(measures, "SETTLED_SECONDS", 0.0)
    monkeypatch.setattr("safelight.api.metering.FRESH_SECONDS", -1.0)


async def test_runs_are_counted_once_each_by_how_they_ended(house):
    await scrape(house)
    async with house.working() as worker:
        assert (await house.predict(**SMALL, num_images_per_prompt=2)).status_code == 200
        worker.outcome = failing("out_of_memory")
        assert (await house.predict(**SMALL)).status_code == 500
    for _ in range(2):
        seen = await scrape(house)
        assert seen["safelight_ended_runs_total", "", "pinhole", "succeeded"] == 1
        assert seen["safelight_ended_runs_total", "out_of_memory", "pinhole", "failed"] == 1
        assert seen["safelight_finished_images_total", "pinhole"] == 2
        assert seen["safelight_run_duration_seconds_count", "pinhole"] == 2


async def test_runs_that_ended_while_nobody_scraped_are_counted_by_the_next_scrapes(house, monkeypatch):
    monkeypatch.setattr(measures, "MAX_ENDS", 2)
    await scrape(house)
    async with house.working():
        for _ in range(5):
            assert (await house.predict(**SMALL)).status_code == 200
            # Each ends at a millisecond of its own.
            await asyncio.sleep(0.002)
    seen = [await scrape(house) for _ in range(4)]
    assert [each["safelight_ended_runs_total", "", "pinhole", "succeeded"] for each in seen] == [2, 4, 5, 5]


async def test_the_queue_and_the_workers_are_shown(house):
    await house.predict(webhook_endpoint="http://a.example")
    figures = EngineFigures(busy_seconds=2.5, step_counts=(0, 3, *[0] * 10, 1), num_rows=6, num_places=8)
    await house.store.runs.pulse("w", [], lease_seconds=60, renew=True, figures=figures)
    seen = await scrape(house)
    assert seen["safelight_queued_runs", "pinhole"] == 1
    assert seen["safelight_oldest_queued_run_seconds", "pinhole"] >= 0
    assert seen["safelight_device_busy_seconds_total", "w"] == 2.5
    assert seen["safelight_batch_rows_total", "w"] / seen["safelight_batch_places_total", "w"] == 0.75
    assert seen["safelight_step_duration_seconds_bucket", "0.01", "w"] == 3
    assert seen["safelight_step_duration_seconds_count", "w"] == 4


async def test_requests_are_counted_by_template_and_no_caller_makes_names(house):
    for path in ("/healthz", "/nothing/here", "/runs/1", "/runs/2"):
        await house.client.get(path)
    await house.client.request("BREW", "/healthz")
    seen = await scrape(house)
    assert seen["safelight_http_requests_total", "GET", "/healthz", "200"] == 1
    assert seen["safelight_http_requests_total", "GET", "/runs/{run_id}", "404"] == 2
    assert seen["safelight_http_requests_total", "GET", "-", "404"] == 1
    assert ("BREW" in str(seen)) is False and seen["safelight_http_open_requests",] == 1


async def test_attempts_of_webhooks_are_counted_by_what_came_back(house):
    for status_code in (200, 204, 503, None):
        house.app.state.meter.count_attempt(status_code)
    seen = await scrape(house)
    assert [seen["safelight_webhook_attempts_total", answer] for answer in ("2xx", "5xx", "none")] == [2, 1, 1]


async def test_only_a_key_that_may_read_reads_them(house):
    async with house.client_with(await house.make_key(Scope.PREDICT)) as client:
        assert (await client.get("/metrics")).status_code == 403
    async with house.client_with(None) as client:
        assert (await client.get("/metrics")).status_code == 401


async def test_openmetrics_is_spoken_to_who_asks(house):
    answer = await house.client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


async def test_every_metric_of_the_house_is_exposed_and_no_other(house):
    await house.store.runs.pulse("w", [], lease_seconds=60, renew=True, figures=EngineFigures())
    text = (await house.client.get("/metrics")).text
    exposed = set(re.findall(r"^# TYPE (safelight_\w+) \w+", text, re.MULTILINE))
    created = {metric.name.removesuffix("_total") + "_created" for metric in METRICS}
    assert exposed - created == {metric.name for metric in METRICS}
    kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)", text, re.MULTILINE))
    assert all(kinds[metric.name] == metric.kind for metric in METRICS)


def test_a_second_meter_counts_for_itself():
    for meter in (Meter(), Meter()):
        meter.count_open(1)


def test_the_document_has_every_metric_with_its_kind_labels_and_meaning():
    text = (DOCS / "metrics.md").read_text(encoding="utf-8")
    rows = {f"| `{metric.name}` | {metric.kind} |" for metric in METRICS}
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels) or "none"
        assert f"| `{metric.name}` | {metric.kind} | {labels} | {metric.meaning} |" in text
    assert text.count("\n| `safelight_") == len(rows)
    assert set(re.findall(r"safelight_\w+", text)) <= names_of_series() | {metric.name for metric in METRICS}


def test_the_grafana_dashboard_asks_for_what_there_is_and_shows_all_of_it():
    dashboard = json.loads((DOCS / "grafana.json").read_text(encoding="utf-8"))
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"safelight_\w+", target["expr"])
    }
    assert asked <= names_of_series()
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}
    assert {metric.name for metric in METRICS} <= shown
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
