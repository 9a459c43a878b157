"""The server that people write first: FastAPI, a diffusers pipeline, and a lock around it."""

from __future__ import annotations

import threading

import uvicorn
from fastapi import FastAPI

from benchmarks.peers.pipelines import Pipeline, Request, parser


def build(pipeline: Pipeline) -> FastAPI:
    app, lock = FastAPI(), threading.Lock()

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/pinhole/predict")
    def predict(request: Request) -> dict[str, object]:
        with lock:
            return pipeline.draw([request])[0]

    return app


def main() -> None:
    options = vars(parser(__doc__).parse_args())
    port = options.pop("port")
    uvicorn.run(build(Pipeline(**options)), host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    main()
