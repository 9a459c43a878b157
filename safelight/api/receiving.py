"""Bodies as they arrive: the declared type, a limit that is counted and not believed, and an absolute deadline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request

from safelight.api.params import shorten
from safelight.config import ServerSettings
from safelight.errors import BodyTooLarge, ReceiveTimeout, UnsupportedMediaType

RECEIVE_DEADLINE = "receive_deadline"
"""Where the door keeps, in a request's state, until when on the loop's clock the whole of it must have arrived."""


@asynccontextmanager
async def arriving(request: Request, timeout_seconds: float) -> AsyncIterator[None]:
    """A body is read within. Raises ReceiveTimeout when it is still not there at the request's deadline, which counts
    from its first byte; without a door that set one, from now."""
    from_now = asyncio.get_running_loop().time() + timeout_seconds
    try:
        async with asyncio.timeout_at(getattr(request.state, RECEIVE_DEADLINE, from_now)):
            yield
    except TimeoutError as error:
        raise ReceiveTimeout(f"the request did not arrive within {timeout_seconds:g} s") from error


async def read_json_body(request: Request, settings: ServerSettings, *, large_keys: tuple[str, ...] = ()) -> bytes:
    """The whole body of a request that declares JSON. Raises UnsupportedMediaType, BodyTooLarge, ReceiveTimeout.

    One that names any of `large_keys` may be larger by `max_picture_bytes`.
    """
    _check_type(request)
    limit = settings.max_body_bytes + (settings.max_picture_bytes if large_keys else 0)
    keys = tuple(key.encode() for key in large_keys)
    declared = request.headers.get("content-length", "")
    # A length of many digits is over any limit, and int() would not take it.
    if len(declared) > 15 or (declared.isdecimal() and int(declared) > limit):
        raise _too_large(limit)
    async with arriving(request, settings.receive_timeout_seconds):
        return await _collect(request, limit, small_limit=settings.max_body_bytes, large_keys=keys)


async def _collect(request: Request, limit: int, *, small_limit: int, large_keys: tuple[bytes, ...]) -> bytes:
    body = bytearray()
    is_large = False
    async for chunk in request.stream():
        body += chunk
        if len(body) > small_limit and not is_large:
            # What is beside the large values is small, so the name of one has come by now.
            if not any(key in body for key in large_keys):
                raise _too_large(small_limit)
            is_large = True
        if len(body) > limit:
            raise _too_large(limit)
    return bytes(body)


def _check_type(request: Request) -> None:
    declared = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json = declared == "application/json" or (declared.startswith("application/") and declared.endswith("+json"))
    if not is_json:
        shown = shorten(declared) if declared else "nothing"
        raise UnsupportedMediaType(f"the body is declared as {shown}; send it with `Content-Type: application/json`")
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise UnsupportedMediaType(f"the body is encoded as {shorten(encoding)}; send it without Content-Encoding")


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is over {limit} bytes, which is the most that is taken")
