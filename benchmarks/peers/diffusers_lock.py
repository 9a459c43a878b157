"""The server that people write first: FastAPI, a diffusers pipeline, and a lock around it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from benchmarks.peers.pipelines import Pipeline, Request, parser


def build(draw: Callable[[Request], dict[str, object]]) -> FastAPI:
    """One request at a time, whatever draws it."""
    app, lock = FastAPI(), threading.Lock()

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/pinhole/predict")
    def predict(request: Request) -> dict[str, object]:
        with lock:
            return draw(request)

    return app


def main() -> None:
    options = vars(parser(__doc__).parse_args())
    port = options.pop("port")
    pipeline = Pipeline(**options)
    uvicorn.run(build(lambda request: pipeline.draw([request])[0]), host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    main()
