"""The example request, sent the way curl would: no client library, plain HTTP."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from base64 import b64decode
from typing import Any

from safelight.errors import RunFailed

EXAMPLE_BODY: dict[str, Any] = {
    "prompt": "a photo of an astronaut riding a horse on mars.",
    "height": 768,
    "width": 512,
    "num_inference_steps": 60,
    "guidance_scale": 8,
    "num_images_per_prompt": 2,
    "negative_prompt": "no sky",
}

_TIMEOUT_SECONDS = 3600.0


def post(url: str, key: str, body: dict[str, Any]) -> dict[str, Any]:
    """The answer's JSON. Raises RunFailed with the server's own sentence."""
    headers = {"Authorization": key, "Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)  # noqa: S310 - our own server on loopback
    # No proxy of the environment: it could not reach our loopback.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_TIMEOUT_SECONDS) as answer:
            found: dict[str, Any] = json.load(answer)
            return found
    except urllib.error.HTTPError as error:
        raise RunFailed(f"the server answered {error.code}: {_sentence(error.read())}") from error
    except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
        raise RunFailed(f"the server did not answer: {error}") from error


def pictures_of(answer: dict[str, Any]) -> tuple[bytes, ...]:
    """The files in an answer."""
    return tuple(b64decode(text, validate=True) for text in answer["result"])


def check_pictures(pictures: tuple[bytes, ...], body: dict[str, Any]) -> None:
    """Raises RunFailed when these are not the PNG files that `body` asked for."""
    if len(pictures) != body["num_images_per_prompt"]:
        raise RunFailed(f"{len(pictures)} pictures came, {body['num_images_per_prompt']} were asked for")
    for picture in pictures:
        size = int.from_bytes(picture[16:20], "big"), int.from_bytes(picture[20:24], "big")
        if picture[:8] != b"\x89PNG\r\n\x1a\n" or size != (body["width"], body["height"]):
            raise RunFailed(f"a picture is not a PNG of {body['width']}x{body['height']}")


def _sentence(body: bytes) -> str:
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")
