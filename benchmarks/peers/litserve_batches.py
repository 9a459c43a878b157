"""LitServe with its own batching: requests that come within a short while are handed over together."""

from __future__ import annotations

import litserve

from benchmarks.peers.pipelines import BATCH_SECONDS, MAX_BATCH_SIZE, Pipeline, Request, parser


class Drawing(litserve.LitAPI):
    def __init__(self, options: dict[str, object]) -> None:
        super().__init__(max_batch_size=MAX_BATCH_SIZE, batch_timeout=BATCH_SECONDS, api_path="/pinhole/predict")
        self._options = options

    def setup(self, device: str) -> None:
        self._pipeline = Pipeline(**self._options)

    def decode_request(self, request: dict[str, object]) -> Request:
        return Request(**request)

    def predict(self, requests: list[Request]) -> list[dict[str, object]]:
        return self._pipeline.draw(requests)

    def encode_response(self, output: dict[str, object]) -> dict[str, object]:
        return output


def main() -> None:
    options = vars(parser(__doc__).parse_args())
    port = options.pop("port")
    server = litserve.LitServer(
        Drawing(options), accelerator="cpu", timeout=False, healthcheck_path="/healthz", workers_per_device=1
    )
    server.run(host="127.0.0.1", port=port, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main()
