from __future__ import annotations

import base64
import io
import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from PIL import Image

from safelight import errors
from safelight.client import AsyncClient, Client, ServerUnreachable, UnexpectedAnswer
from safelight.client.calls import Patience
from safelight.runs import RunStatus, SamplerName

from .conftest import MakeClient
from .stub import RUN_ID, Reply, Stub, answer, envelope, problem, run_json, wrong_fields

PREDICT = "POST /pinhole/predict"
RUN = f"GET /runs/{RUN_ID}"


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 4), colour).save(file, "PNG")
    return file.getvalue()


def test_predict_gives_pictures_seeds_and_warnings(stub: Stub, connect: MakeClient) -> None:
    warning = '299 safelight "the prompt was cut after \\"lamp\\""'
    stub.on(PREDICT, envelope(png("red"), png("blue"), Warning=warning))
    result = connect(stub.url).predict("pinhole", "a lamp", height=768, guidance_scale=8, seed=7, negative_prompt=None)
    assert result.run_id == RUN_ID
    assert result.run_time_ms == 12.5
    assert result.seeds == (7, 8)
    assert result.warnings == ('the prompt was cut after "lamp"',)
    assert [image.size for image in result.images] == [(8, 4), (8, 4)]
    assert result.images[1].convert("RGB").getpixel((0, 0)) == (0, 0, 255)
    assert result.images is result.images
    assert result.image_bytes[0] == png("red")
    (request,) = stub.seen
    assert request.json == {"prompt": "a lamp", "height": 768, "guidance_scale": 8, "seed": 7}
    assert request.headers["authorization"] == "Bearer sl_live_secret"
    assert len(request.headers["idempotency-key"]) == 36


def test_a_picture_to_begin_from_is_sent_as_base64_and_a_run_s_image_by_its_name(
    stub: Stub, connect: MakeClient
) -> None:
    stub.on(PREDICT, envelope(png("red")))
    connect(stub.url).predict("pinhole", "a lamp", init_image=png("blue"), mask=f"run:{RUN_ID}/0", strength=0.5)
    sent = stub.seen[0].json
    assert base64.b64decode(sent["init_image"]) == png("blue")
    assert (sent["mask"], sent["strength"]) == (f"run:{RUN_ID}/0", 0.5)


def test_a_result_prints_without_its_bytes(stub: Stub, connect: MakeClient) -> None:
    stub.on(PREDICT, envelope(b"x" * 10_000))
    assert len(repr(connect(stub.url).predict("pinhole", ""))) < 300


def test_a_client_prints_without_its_key(connect: MakeClient) -> None:
    assert "secret" not in repr(connect("http://127.0.0.1:1"))


@pytest.mark.parametrize(
    ("broken", "num_pauses"),
    [
        (Reply(cut=True), 1),
        (Reply(200, b'{"run_id":', cut=True), 1),
        (problem(429, "overloaded", "busy", Retry_After="3"), 1),
        (problem(503, "stopping", "stopping", Retry_After="2"), 1),
        (problem(507, "storage_full", "the disk is full"), 1),
        (Reply(502, b"<html>bad gateway</html>"), 1),
        (Reply(504, b"<html>gateway timeout</html>"), 1),
    ],
)
def test_what_may_go_better_is_tried_again_under_the_same_key(
    stub: Stub, connect: MakeClient, slept: list[float], broken: Reply, num_pauses: int
) -> None:
    stub.on(PREDICT, broken, envelope(b"p"))
    assert connect(stub.url).predict("pinhole", "a lamp").image_bytes == (b"p",)
    assert len(slept) == num_pauses
    first, second = stub.seen
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
    assert first.body == second.body


def test_two_calls_have_two_keys_and_a_caller_may_bring_one(stub: Stub, connect: MakeClient) -> None:
    stub.on(PREDICT, envelope(b"p"))
    client = connect(stub.url)
    client.predict("pinhole", "a")
    client.predict("pinhole", "a")
    client.predict("pinhole", "a", idempotency_key="mine")
    keys = [request.headers["idempotency-key"] for request in stub.seen]
    assert len(set(keys)) == 3
    assert keys[2] == "mine"


def test_predict_refuses_a_webhook_instead_of_waiting_for_nothing(stub: Stub, connect: MakeClient) -> None:
    with pytest.raises(errors.InvalidFields, match="submit"):
        connect(stub.url).predict("pinhole", "a lamp", webhook_endpoint="https://example.com/")
    assert stub.seen == []


def test_retry_after_is_honoured_and_lengthened_by_jitter_only(
    stub: Stub, connect: MakeClient, slept: list[float]
) -> None:
    stub.on(PREDICT, problem(429, "overloaded", "busy", Retry_After="7"), envelope(b"p"))
    connect(stub.url).predict("pinhole", "a lamp")
    assert 7 <= slept[0] <= 7 * 1.25


def test_a_retry_after_that_no_calendar_holds_is_none(stub: Stub, connect: MakeClient, slept: list[float]) -> None:
    never = "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"
    stub.on(PREDICT, problem(429, "overloaded", "busy", Retry_After=never), envelope(b"p"))
    connect(stub.url).predict("pinhole", "a lamp")
    assert len(slept) == 1


def test_a_run_whose_pictures_have_expired_is_no_empty_success(stub: Stub, connect: MakeClient) -> None:
    stub.on(f"GET /runs/{RUN_ID}", answer(run_json(images=[])))
    with pytest.raises(errors.NotFound, match="have expired"):
        connect(stub.url).wait(RUN_ID)


def test_a_retry_after_beyond_patience_is_told_at_once(stub: Stub, connect: MakeClient, slept: list[float]) -> None:
    stub.on(PREDICT, problem(429, "overloaded", "busy for long", Retry_After="900"))
    with pytest.raises(errors.Overloaded) as caught:
        connect(stub.url).predict("pinhole", "a lamp")
    assert caught.value.retry_after_seconds == 900
    assert caught.value.message == "busy for long"
    assert slept == []


def test_tries_are_bounded(stub: Stub, connect: MakeClient, slept: list[float]) -> None:
    stub.on(PREDICT, Reply(cut=True))
    with pytest.raises(ServerUnreachable) as caught:
        connect(stub.url, patience=Patience(max_retries=3)).predict("pinhole", "a lamp")
    assert len(stub.seen) == 4
    assert len(slept) == 3
    assert slept == sorted(slept)
    assert caught.value.is_retryable
    assert stub.url in caught.value.message


def test_a_server_that_is_not_there_is_a_typed_error(connect: MakeClient) -> None:
    with pytest.raises(ServerUnreachable):
        connect("http://127.0.0.1:1").get(RUN_ID)


class TestErrors:
    @pytest.mark.parametrize(
        ("reply", "kind"),
        [
            (problem(400, "malformed_body", "m"), errors.MalformedBody),
            (problem(401, "unauthorized", "m"), errors.Unauthorized),
            (problem(403, "forbidden", "m"), errors.Forbidden),
            (problem(404, "run_not_found", "m"), errors.NotFound),
            (problem(404, "deployment_not_found", "m"), errors.NotFound),
            (problem(409, "conflict", "m"), errors.Conflict),
            (problem(409, "run_cancelled", "m", run_id=RUN_ID), errors.Conflict),
            (problem(413, "body_too_large", "m"), errors.BodyTooLarge),
            (problem(415, "unsupported_media_type", "m"), errors.UnsupportedMediaType),
            (problem(422, "idempotency_mismatch", "m"), errors.IdempotencyMismatch),
            (problem(418, "of_a_later_version", "m"), errors.InvalidRequest),
            (problem(500, "out_of_memory", "m", run_id=RUN_ID), errors.RunFailed),
            (problem(500, "model_error", "m", run_id=RUN_ID), errors.RunFailed),
            (problem(500, "internal_error", "m"), errors.SafelightError),
        ],
    )
    def test_a_problem_is_the_error_it_names(
        self, stub: Stub, connect: MakeClient, slept: list[float], reply: Reply, kind: type[errors.SafelightError]
    ) -> None:
        stub.on(PREDICT, reply)
        with pytest.raises(errors.SafelightError) as caught:
            connect(stub.url).predict("pinhole", "a lamp")
        assert type(caught.value) is kind
        assert caught.value.message == "m"
        assert f'"{caught.value.code}"' in reply.body.decode()
        assert (caught.value.run_id == RUN_ID) == (RUN_ID in reply.body.decode())
        assert slept == []

    def test_wrong_fields_are_told_one_by_one(self, stub: Stub, connect: MakeClient) -> None:
        stub.on(PREDICT, wrong_fields(("height", "not a multiple of 8"), ("prompt", "missing")))
        with pytest.raises(errors.InvalidFields) as caught:
            connect(stub.url).predict("pinhole", "a lamp", height=7)
        assert [(wrong.field, wrong.message) for wrong in caught.value.fields] == [
            ("height", "not a multiple of 8"),
            ("prompt", "missing"),
        ]

    @pytest.mark.parametrize(
        ("status", "kind"),
        [
            (401, errors.Unauthorized),
            (404, errors.NotFound),
            (413, errors.InvalidRequest),
            (500, UnexpectedAnswer),
            (302, UnexpectedAnswer),
        ],
    )
    @pytest.mark.parametrize("body", [b"<html>from a proxy</html>", b"[1]", b"", b'{"code": 5, "message": {}}'])
    def test_an_answer_from_somebody_else_is_an_error_too(
        self, stub: Stub, connect: MakeClient, status: int, kind: type[Exception], body: bytes
    ) -> None:
        stub.on(RUN, Reply(status, body))
        with pytest.raises(kind) as caught:
            connect(stub.url).get(RUN_ID)
        assert str(status) in str(caught.value)

    @pytest.mark.parametrize("body", [b"", b"{}", b"null", b"[]", b'{"id": 1, "progress": 3}', b"<html>"])
    def test_a_success_that_makes_no_sense_is_an_error(self, stub: Stub, connect: MakeClient, body: bytes) -> None:
        stub.on(RUN, Reply(200, body))
        stub.on(PREDICT, Reply(200, body))
        client = connect(stub.url)
        for call in (lambda: client.get(RUN_ID), lambda: client.predict("pinhole", "a")):
            with pytest.raises(UnexpectedAnswer, match="Safelight server"):
                call()

    @pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://example.com", "http://", "http://x:80O0"])
    def test_a_url_that_is_none_is_refused_at_once(self, url: str) -> None:
        for kind in (Client, AsyncClient):
            with pytest.raises(errors.ConfigError, match="must look like"):
                kind(url, "key")

    @pytest.mark.parametrize("key", ["sl_abc…", "sl_abc\n"])
    def test_a_key_that_no_header_can_hold_is_refused_at_once(self, key: str) -> None:
        for kind in (Client, AsyncClient):
            with pytest.raises(errors.Unauthorized, match="not a whole API key"):
                kind("http://127.0.0.1:8000", key)

    def test_redirects_do_not_carry_the_key_elsewhere(self, stub: Stub, connect: MakeClient) -> None:
        with Stub() as elsewhere:
            stub.on(RUN, Reply(307, b"", (("Location", f"{elsewhere.url}/runs/{RUN_ID}"),)))
            with pytest.raises(UnexpectedAnswer):
                connect(stub.url).get(RUN_ID)
            assert elsewhere.seen == []


class TestWaiting:
    @pytest.mark.parametrize(
        "let_go",
        [
            problem(504, "wait_timeout", "goes on", run_id=RUN_ID),
            problem(503, "stopping", "goes on", run_id=RUN_ID, Retry_After="5"),
            answer({"run_id": RUN_ID, "message": "later"}, 202),
        ],
    )
    def test_a_call_that_the_server_lets_go_is_waited_for_by_its_run(
        self, stub: Stub, connect: MakeClient, slept: list[float], let_go: Reply
    ) -> None:
        stub.on(PREDICT, let_go)
        stub.on(RUN, *(answer(run_json("running")) for _ in range(3)), answer(run_json()))
        stub.on(f"{RUN}/images/0", Reply(200, b"png"))
        result = connect(stub.url).predict("pinhole", "a lamp")
        assert result.image_bytes == (b"png",)
        assert (result.seeds, result.warnings, result.run_time_ms) == ((7,), ("the prompt was cut",), 1234.5)
        assert len(slept) == 3
        assert [request.method for request in stub.seen].count("POST") == 1

    def test_looks_get_rarer_up_to_a_bound_and_follow_the_eta(
        self, stub: Stub, connect: MakeClient, slept: list[float]
    ) -> None:
        near = answer(run_json("running", eta_seconds=0.3))
        stub.on(RUN, *(answer(run_json("running")) for _ in range(12)), near, answer(run_json()))
        stub.on(f"{RUN}/images/0", Reply(200, b"png"))
        connect(stub.url).wait(RUN_ID)
        assert slept[:12] == sorted(slept[:12])
        assert slept[11] == 2.0
        assert slept[12] == pytest.approx(0.3)

    @pytest.mark.parametrize(
        ("record", "kind", "code"),
        [
            (run_json("failed", error={"code": "worker_lost", "message": "m"}), errors.RunFailed, "worker_lost"),
            (
                run_json("failed", error={"code": "model_unavailable", "message": "m"}),
                errors.ModelUnavailable,
                "model_unavailable",
            ),
            (run_json("failed"), errors.RunFailed, "run_failed"),
            (run_json("cancelled"), errors.Conflict, "run_cancelled"),
        ],
    )
    def test_a_run_that_ended_without_pictures_is_an_error(
        self, stub: Stub, connect: MakeClient, record: Any, kind: type[errors.SafelightError], code: str
    ) -> None:
        stub.on(RUN, answer(record))
        with pytest.raises(kind) as caught:
            connect(stub.url).wait(RUN_ID)
        assert (caught.value.code, caught.value.run_id) == (code, RUN_ID)

    def test_a_model_that_cannot_be_loaded_is_not_asked_for_again_and_again(
        self, stub: Stub, connect: MakeClient
    ) -> None:
        stub.on(PREDICT, problem(503, "model_unavailable", "no weights", run_id=RUN_ID, Retry_After="5"))
        stub.on(RUN, answer(run_json("failed", error={"code": "model_unavailable", "message": "no weights"})))
        with pytest.raises(errors.ModelUnavailable, match="no weights"):
            connect(stub.url).predict("pinhole", "a lamp")
        assert len(stub.seen) == 2

    def test_waiting_ends_at_its_time_with_the_id_of_the_run(self, stub: Stub, connect: MakeClient) -> None:
        ticks = iter(range(1000))
        stub.on(RUN, answer(run_json("running")))
        client = connect(stub.url, monotonic=lambda: float(next(ticks)))
        with pytest.raises(errors.WaitTimeout) as caught:
            client.wait(RUN_ID, timeout_seconds=20)
        assert caught.value.run_id == RUN_ID

    def test_a_silent_server_does_not_outlast_the_time_given(self, stub: Stub, connect: MakeClient) -> None:
        stub.on(PREDICT, Reply(200, delay_seconds=6))
        started = time.monotonic()
        with pytest.raises(errors.WaitTimeout):
            connect(stub.url).predict("pinhole", "a lamp", timeout_seconds=0.2)
        assert time.monotonic() - started < 5

    def test_waiting_outlives_broken_connections(self, stub: Stub, connect: MakeClient) -> None:
        image = f"{RUN}/images/0"
        stub.on(RUN, Reply(cut=True), answer(run_json("running")), Reply(cut=True), answer(run_json()))
        stub.on(image, Reply(200, b"pn", cut=True), Reply(200, b"png"))
        assert connect(stub.url).wait(RUN_ID).image_bytes == (b"png",)


class TestRuns:
    def test_submit_leaves_a_run_and_hands_back_a_handle(self, stub: Stub, connect: MakeClient) -> None:
        stub.on(PREDICT, answer({"run_id": RUN_ID, "message": "later"}, 202))
        stub.on(RUN, answer(run_json()))
        stub.on(f"{RUN}/images/0", Reply(200, b"png"))
        stub.on(f"POST /runs/{RUN_ID}/cancel", answer(run_json("cancelled")))
        handle = connect(stub.url).submit("pinhole", "a lamp", webhook_endpoint="https://example.com/hook")
        assert handle.run_id == RUN_ID
        assert stub.seen[0].headers["prefer"] == "respond-async"
        assert stub.seen[0].json["webhook_endpoint"] == "https://example.com/hook"
        assert handle.wait().image_bytes == (b"png",)
        assert handle.get().status is RunStatus.SUCCEEDED
        assert handle.cancel().status is RunStatus.CANCELLED
        assert RUN_ID in repr(handle)

    def test_a_run_record_says_all_the_server_says(self, stub: Stub, connect: MakeClient) -> None:
        stub.on(RUN, answer(run_json(queue_position=3, eta_seconds=1.5)))
        record = connect(stub.url).get(RUN_ID)
        assert record.params.sampler is SamplerName.EULER
        assert (record.steps_done, record.steps_total, record.queue_position, record.eta_seconds) == (10, 50, 3, 1.5)
        assert record.started_at is None
        assert record.ended_at is not None
        assert (record.ended_at - record.created_at).total_seconds() == 1.5
        assert record.images[0].num_bytes == 3

    def test_all_pages_are_one_list(self, stub: Stub, connect: MakeClient) -> None:
        first = {"runs": [run_json(), run_json()], "next_cursor": "abc"}
        stub.on("GET /runs", answer(first), answer({"runs": [run_json()], "next_cursor": None}))
        records = list(
            connect(stub.url).runs(
                status=RunStatus.SUCCEEDED, created_after=datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=1)))
            )
        )
        assert len(records) == 3
        assert "status=succeeded" in stub.seen[0].path
        assert "%2B01" in stub.seen[0].path
        assert "cursor" not in stub.seen[0].path
        assert "cursor=abc" in stub.seen[1].path

    def test_deleting_and_images(self, stub: Stub, connect: MakeClient) -> None:
        stub.on(f"DELETE /runs/{RUN_ID}", Reply(204))
        stub.on(f"{RUN}/images/1", Reply(200, b"second"))
        client = connect(stub.url)
        assert client.delete(RUN_ID) is None
        assert client.image(RUN_ID, 1) == b"second"

    def test_names_cannot_leave_their_place_in_the_path(self, stub: Stub, connect: MakeClient) -> None:
        client = connect(stub.url)
        for call in (lambda: client.get("../x?y"), lambda: client.predict("a/../b", "p")):
            with pytest.raises(errors.NotFound):
                call()
        assert [request.path for request in stub.seen] == ["/runs/..%2Fx%3Fy", "/a%2F..%2Fb/predict"]

    def test_a_server_below_a_path_is_reached(self, stub: Stub, connect: MakeClient) -> None:
        stub.on(f"GET /safelight/runs/{RUN_ID}", answer(run_json()))
        assert connect(f"{stub.url}/safelight/").get(RUN_ID).id == RUN_ID


def test_the_client_imports_nothing_heavy() -> None:
    code = (
        "import sys, safelight.client\n"
        "heavy = {'torch', 'numpy', 'sqlalchemy', 'fastapi', 'pydantic', 'PIL', 'diffusers', 'alembic', 'starlette'}\n"
        "ours = {name for name in sys.modules if name.startswith('safelight.')}\n"
        "ours -= {'safelight.runs', 'safelight.errors', 'safelight.version'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert all(name.startswith('safelight.client') for name in ours), ours\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
