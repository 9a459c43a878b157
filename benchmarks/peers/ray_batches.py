"""Ray Serve with `@serve.batch`: requests that come within a short while are handed over together."""

import threading

import ray
from fastapi import FastAPI
from ray import serve

from benchmarks.peers.pipelines import BATCH_SECONDS, MAX_BATCH_SIZE, Pipeline, Request, parser

door = FastAPI()


@serve.deployment(num_replicas=1, max_ongoing_requests=100)
@serve.ingress(door)
class Drawing:
    def __init__(self, options: dict[str, object]) -> None:
        self._pipeline = Pipeline(**options)

    @door.get("/healthz")
    async def healthz(self) -> dict[str, str]:
        return {"status": "ok"}

    @door.post("/pinhole/predict")
    async def predict(self, request: Request) -> dict[str, object]:
        return await self.draw(request)

    @serve.batch(max_batch_size=MAX_BATCH_SIZE, batch_wait_timeout_s=BATCH_SECONDS)
    async def draw(self, requests: list[Request]) -> list[dict[str, object]]:
        return self._pipeline.draw(requests)


def main() -> None:
    options = vars(parser(__doc__).parse_args())
    port = options.pop("port")
    ray.init(include_dashboard=False, configure_logging=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Drawing.bind(options), route_prefix="/")
    threading.Event().wait()


if __name__ == "__main__":
    main()
