"""What /openapi.json says of each route beyond its signature: bodies, every status, the problem document, examples."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from safelight.api.answers import JSON, PROBLEM
from safelight.api.errors import STATUSES
from safelight.api.sse import EVENT_STREAM
from safelight.api.views import DeploymentList, RunPage, RunView, UsageReport
from safelight.api.webhook_views import WEBHOOK_BODIES
from safelight.envelope import ACCEPTED_MESSAGE, SUCCESS_MESSAGE
from safelight.runs import MAX_SEED, OutputFormat, RunEventKind, SamplerName, Spacing

SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer <key>`"},
    "key": {"type": "apiKey", "in": "header", "name": "Authorization", "description": "`Authorization: <key>`"},
}

EXAMPLE_REQUEST = {
    "prompt": "a photo of an astronaut riding a horse on mars.",
    "height": 768,
    "width": 512,
    "num_inference_steps": 60,
    "guidance_scale": 8,
    "num_images_per_prompt": 2,
    "negative_prompt": "no sky",
    "webhook_endpoint": "https://your_url.com",
}

_EXAMPLE_ID = "0b6e3bd5-4a0c-4a3e-9c6b-6a1f6f0f8a55"
_INTEGRAL = {"anyOf": [{"type": "integer"}, {"type": "string", "pattern": r"^\s*[+-]?[0-9]+(\.0*)?\s*$"}]}
_NUMERIC = {"anyOf": [{"type": "number"}, {"type": "string", "pattern": r"^\s*[+-]?[0-9.]+([eE][+-]?[0-9]+)?\s*$"}]}


def _optional(schema: dict[str, Any], description: str) -> dict[str, Any]:
    choices = schema.get("anyOf", [schema])
    return {"anyOf": [*choices, {"type": "null"}], "description": description}


PREDICT_BODY: dict[str, Any] = {
    "type": "object",
    "title": "PredictBody",
    "description": "null is the default; keys that are not listed are ignored. A deployment may have other"
    " defaults and limits.",
    "required": ["prompt"],
    "properties": {
        "prompt": {"type": "string", "maxLength": 4000, "description": "What to draw."},
        "height": _optional(_INTEGRAL, "Pixels; a multiple of 8. Default 512."),
        "width": _optional(_INTEGRAL, "Pixels; a multiple of 8. Default 512."),
        "num_inference_steps": _optional(_INTEGRAL, "Denoising steps. Default 50."),
        "guidance_scale": _optional(
            _NUMERIC, "How closely to follow the prompt; <= 1 turns guidance off. Default 7.5."
        ),
        "num_images_per_prompt": _optional(_INTEGRAL, "How many images. Default 1."),
        "negative_prompt": _optional({"type": "string", "maxLength": 4000}, "What not to draw. Default empty."),
        "webhook_endpoint": _optional({"type": "string", "format": "uri"}, "Where the results are POSTed to."),
        "deadline_ms": _optional(
            _INTEGRAL, "When the images are wanted, in milliseconds from now; refused where that cannot be."
        ),
        "seed": _optional(_INTEGRAL, f"Image i uses seed + i, at most {MAX_SEED}. Absent or negative: drawn afresh."),
        "sampler": _optional(
            {"type": "string"},
            f"One of {', '.join(SamplerName)}, or a name diffusers or A1111 has for it. Default euler.",
        ),
        "spacing": _optional(
            {"type": "string"}, f"How the steps are spread: one of {', '.join(Spacing)}. Default automatic."
        ),
        "output_format": _optional({"type": "string"}, f"One of {', '.join(OutputFormat)}. Default png."),
        "init_image": _optional(
            {"type": "string"},
            "A picture to begin from: base64 of a PNG, JPEG or WebP, or `run:<id>/<index>`. Sides that are not"
            " named are its own.",
        ),
        "strength": _optional(
            _NUMERIC,
            "How much of the init_image is changed, over 0 and at most 1: the share of the steps. Default 0.8.",
        ),
        "mask": _optional(
            {"type": "string"}, "A picture of the size of init_image, white where it is painted anew; given as it is."
        ),
        "deterministic": _optional(
            {
                "anyOf": [
                    {"type": "boolean"},
                    {"type": "string", "pattern": r"^\s*([Tt][Rr][Uu][Ee]|[Ff][Aa][Ll][Ss][Ee])\s*$"},
                ]
            },
            "Draw each image by itself: the same pixels whatever else the server draws, for more work. Default false.",
        ),
        "loras": _optional(
            {
                "type": "array",
                "maxItems": 8,
                "items": {
                    "type": "object",
                    "required": ["name"],
                    "additionalProperties": False,
                    "properties": {"name": {"type": "string"}, "scale": _optional(_NUMERIC, "Default 1; -10 to 10.")},
                },
            },
            "LoRAs that the deployment knows, each with its scale. Default none.",
        ),
        "hf_model_path": _optional({"type": "string"}, "Must name the deployment's own model."),
        "model_id": _optional({"type": "string"}, "Must name the deployment's own model."),
        "hf_token": {"description": "Taken and dropped."},
    },
}


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FieldProblem(_Document):
    field: str
    message: str = Field(description="The value, the rule, and the nearest legal value.")


class Problem(_Document):
    """RFC 9457, with `code`, `message` (the same as `detail`) and, once there is a run, `run_id`."""

    type: str
    title: str
    status: int
    detail: str
    message: str
    code: str = Field(description="Stable; all of them are in docs/errors.md.")
    errors: list[FieldProblem] = Field(default_factory=list, description="One for each wrong field.")
    run_id: str = Field(default_factory=str, description="The run this is about; absent when there is none.")


class PredictAnswer(_Document):
    run_id: str
    run_time_ms: float = Field(description="The time the model worked on the run.")
    message: str = Field(examples=[SUCCESS_MESSAGE])
    result: list[str] = Field(description="The images in order, as plain base64.")


class AcceptedAnswer(_Document):
    run_id: str
    message: str = Field(examples=[ACCEPTED_MESSAGE])
    webhook_endpoint: str


class DeferredAnswer(_Document):
    run_id: str
    message: str


class IndexAnswer(_Document):
    name: str
    version: str
    openapi: str
    health: str
    predict: str
    runs: str
    deployments: str


class StatusAnswer(_Document):
    status: str


def _header(name: str, description: str) -> dict[str, Any]:
    return {name: {"description": description, "schema": {"type": "string"}}}


RUN_ID_HEADER = _header("X-Safelight-Run-Id", "The id of the run.")
SEED_HEADER = _header("X-Safelight-Seed", "The seed of each image, separated by commas.")
QUOTA_HEADERS = _header("RateLimit", "What is left of each quota of the key, where it has any.") | _header(
    "RateLimit-Policy", "The quotas of the key, where it has any."
)
WARNING_HEADER = _header("Warning", "What the caller should know about the result, such as a prompt that was cut.")


def _problems(*statuses: int) -> dict[int, dict[str, Any]]:
    """The error answers of a route; every route may answer 421 and 500."""
    return {status: _problem_response(status) for status in sorted({*statuses, 421, 500})}


def _problem_response(status: int) -> dict[str, Any]:
    codes = [code for code, (of_code, _) in STATUSES.items() if of_code == status]
    response: dict[str, Any] = {
        "description": "; ".join(f"{STATUSES[code][1]} (`{code}`)" for code in codes),
        "content": {
            PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}, "example": _example(status, codes[0])}
        },
    }
    if status in {429, 503, 507}:
        response["headers"] = _header("Retry-After", "Seconds after which the same request may succeed.")
    if status == 401:
        response["headers"] = _header("WWW-Authenticate", "How to authenticate.")
    return response


def _example(status: int, code: str) -> dict[str, Any]:
    detail = "height: 500 is not a multiple of 8 between 64 and 1024; the nearest is 504" if status == 422 else "..."
    title = STATUSES[code][1]
    example: dict[str, Any] = {"type": f"urn:safelight:error:{code}", "title": title, "status": status}
    example |= {"detail": detail, "message": detail, "code": code}
    if status == 422:
        field, _, message = detail.partition(": ")
        example["errors"] = [{"field": field, "message": message}]
    return example


def json_answer(model: type[BaseModel], description: str) -> dict[str, Any]:
    """An answer whose body is a `model`."""
    return {"model": model, "description": description}


def route(answers: dict[int, dict[str, Any]], *problems: int, needs_key: bool = True, **extra: Any) -> dict[str, Any]:
    """Arguments of `add_api_route`: what the route answers, and the statuses of its problems."""
    if needs_key:
        extra["security"] = [{name: []} for name in SECURITY_SCHEMES]
    is_json = any("model" in answer for answer in answers.values())
    arguments = {"responses": answers | _problems(*problems), "openapi_extra": extra, "response_model": None}
    return arguments if is_json else arguments | {"response_class": Response}


_PREDICT_EXAMPLES = {
    "full": {"summary": "Every parameter", "value": EXAMPLE_REQUEST},
    "short": {"summary": "Only a prompt", "value": {"prompt": "a red house on a green hill"}},
}

_PREDICT_PARAMETERS = [
    {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "The same key and body give the same run; the same key and another body 422.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 255},
    },
    {
        "name": "Prefer",
        "in": "header",
        "description": "`respond-async`: 202 and the run's id at once.",
        "schema": {"type": "string"},
    },
]

_ACCEPTED_EXAMPLE = {
    "run_id": _EXAMPLE_ID,
    "message": ACCEPTED_MESSAGE,
    "webhook_endpoint": EXAMPLE_REQUEST["webhook_endpoint"],
}

_PREDICT_ANSWERS: dict[int, dict[str, Any]] = {
    200: {
        "model": PredictAnswer | AcceptedAnswer,
        "description": "The images; or, with `webhook_endpoint`, that they will be sent there.",
        "headers": RUN_ID_HEADER | SEED_HEADER | WARNING_HEADER | QUOTA_HEADERS,
        "content": {JSON: {"examples": {"accepted": {"summary": "With a webhook", "value": _ACCEPTED_EXAMPLE}}}},
    },
    202: json_answer(DeferredAnswer, "The run was stored; ask for it at `Location`.")
    | {"headers": RUN_ID_HEADER | _header("Location", "The run.")},
}

_PROJECT_PARAMETER = {
    "name": "project",
    "in": "path",
    "required": True,
    "description": "What clients of old send; the run belongs to the project of the key, whatever this says.",
    "schema": {"type": "string"},
}


def predict_route(*, takes_project: bool) -> dict[str, Any]:
    """Arguments of `add_api_route` for a path of the predict endpoint."""
    body = {"schema": {"$ref": "#/components/schemas/PredictBody"}, "examples": _PREDICT_EXAMPLES}
    return route(
        _PREDICT_ANSWERS,
        *(400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 503, 504, 507),
        requestBody={"required": True, "content": {JSON: body}},
        parameters=[*([_PROJECT_PARAMETER] if takes_project else []), *_PREDICT_PARAMETERS],
    )


LIST_RUNS = route({200: json_answer(RunPage, "A page of runs.")}, 401, 403, 422, 503)
GET_RUN = route({200: json_answer(RunView, "The run.")}, 401, 403, 404, 503)
CANCEL_RUN = route({200: json_answer(RunView, "The run as it is now.")}, 401, 403, 404, 503, 507)
DELETE_RUN = route({204: {"description": "It is gone."}}, 401, 403, 404, 409, 503, 507)
DELETE_RUN["status_code"] = 204

_EVENT = {
    "type": "object",
    "description": "One event of the stream.",
    "properties": {
        "event": {"type": "string", "enum": [kind.value for kind in RunEventKind]},
        "id": {"type": "string", "pattern": "^[0-9]+$"},
        "data": {"type": "string", "contentMediaType": JSON},
    },
}

FOLLOW_RUN = route(
    {
        200: {
            "description": "Events to the end of the run: `event` is the kind, `id` the sequence, `data` a JSON"
            " object.",
            "content": {EVENT_STREAM: {"schema": _EVENT}},
        },
        204: {"description": "The run has ended, and `Last-Event-ID` was its last event."},
    },
    401,
    403,
    404,
    503,
)

_BYTES = {"schema": {"type": "string", "format": "binary"}}

GET_IMAGE = route(
    {
        200: {
            "description": "The file.",
            "content": {f"image/{name}": _BYTES for name in OutputFormat},
            "headers": _header("ETag", "The SHA-256 of the file."),
        },
        304: {"description": "The file is the one that `If-None-Match` names."},
    },
    401,
    403,
    404,
    503,
)

GET_PREVIEW = route(
    {200: {"description": "The last preview.", "content": {"image/png": _BYTES}}},
    401,
    403,
    404,
    503,
)
USAGE = route({200: json_answer(UsageReport, "By key and deployment.")}, 401, 403, 422, 503)
METRICS = route(
    {
        200: {
            "description": "Prometheus' text format, or OpenMetrics for those who ask for it.",
            "content": {
                name: {"schema": {"type": "string"}} for name in ("text/plain", "application/openmetrics-text")
            },
        }
    },
    401,
    403,
    503,
)
LIST_DEPLOYMENTS = route({200: json_answer(DeploymentList, "All deployments, by name.")}, 401, 403, 503)
INDEX = route({200: json_answer(IndexAnswer, "Where things are.")}, needs_key=False)
HEALTH = route({200: json_answer(StatusAnswer, "It answers.")}, needs_key=False)
READINESS = route({200: json_answer(StatusAnswer, "It can take work.")}, 503, needs_key=False)


def complete_document(document: dict[str, Any]) -> dict[str, Any]:
    """`document` with the parts that no route's signature can say."""
    components = document.setdefault("components", {})
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    components["schemas"] |= problem.pop("$defs") | {"Problem": problem, "PredictBody": PREDICT_BODY}
    components["schemas"] |= WEBHOOK_BODIES
    components["securitySchemes"] = SECURITY_SCHEMES
    # The framework adds these to whatever takes a parameter, although a string cannot be invalid.
    for name in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(name, None)
    for operation in (each for path in document["paths"].values() for each in path.values()):
        if JSON in operation["responses"].get("422", {}).get("content", {}):
            del operation["responses"]["422"]
    return document
