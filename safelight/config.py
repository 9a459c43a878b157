"""Settings: one frozen tree from a TOML file, the environment and flags, in that order, checked once. The only reader
of settings from the environment."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FieldSerializationInfo, SecretStr, ValidationError, field_serializer

from safelight.errors import ConfigError

PREFIX = "SAFELIGHT_"
NO_SETTINGS = frozenset({PREFIX + "CONFIG", PREFIX + "KEY"})
"""The settings file, and the key that the dashboard's examples for callers take from there."""
"""Environment variables are this plus the path of the setting: SAFELIGHT_SERVER__PORT=8001."""

Seconds = Annotated[float, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ServerSettings(_Section):
    """The door."""

    host: str = Field("127.0.0.1", description="Address to listen on. Loopback unless told otherwise.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    allowed_hosts: tuple[str, ...] = Field(
        (), description="Host headers answered besides loopback names; `*` answers all."
    )
    sync_timeout_seconds: Seconds = Field(
        180.0, description="How long a call without webhook waits before it answers 504."
    )
    max_body_bytes: int = Field(64 * 1024, ge=1024, description="Largest request body, pictures in it not counted.")
    max_picture_bytes: int = Field(
        16 * 1024 * 1024, ge=0, description="Largest `init_image` and `mask` of one request together, as base64."
    )
    receive_timeout_seconds: Seconds = Field(
        15.0,
        le=86400,
        description="A request must have arrived whole by then, from its first byte or a new connection's beginning.",
    )
    max_queued_runs: int = Field(1000, ge=1, description="Runs that may wait; more are refused with 429.")


class StoreSettings(_Section):
    """Runs, keys, deployments and pictures."""

    database_url: SecretStr | None = Field(None, description="SQLAlchemy URL; unset: SQLite in the data folder.")
    retention_days: float = Field(30.0, gt=0, description="Ended runs and their images are kept this long.")
    max_image_bytes: int | None = Field(
        None, ge=0, description="Bytes of all pictures; over it the oldest ended runs lose theirs. Unset: no limit."
    )
    images_url: str | None = Field(
        None,
        pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9._/-]*)?$",
        description="`s3://BUCKET/PREFIX`: pictures go there, with the usual AWS credentials. Unset: into the"
        " data folder.",
    )
    images_endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^@/?#]+/?$",
        description="Address of another S3 server than AWS's: `https://HOST:PORT`.",
    )
    prune_interval_seconds: Seconds = Field(600.0, description="How often expired runs and orphan files are removed.")

    @field_serializer("database_url")
    def _mask_password(self, url: SecretStr | None, info: FieldSerializationInfo) -> str | None:
        """The URL holds a password: it is masked everywhere but on its way to a child process."""
        if url is None:
            return None
        is_revealed = bool(info.context and info.context.get("reveal"))
        return url.get_secret_value() if is_revealed else str(url)


class WorkerSettings(_Section):
    """One process per device."""

    devices: tuple[str, ...] = Field((), description="torch devices, one worker each; empty: every GPU, else the CPU.")
    lease_seconds: Seconds = Field(60.0, description="A claim not renewed for this long is another worker's.")
    heartbeat_seconds: Seconds = Field(
        15.0, description="How often a claim is renewed while the engine makes progress."
    )
    progress_seconds: Seconds = Field(0.5, description="How often progress is written for watched and running runs.")
    poll_seconds: Seconds = Field(1.0, description="How often the store is asked for work when no hint came.")
    stall_seconds: Seconds = Field(
        300.0, description="An engine without a finished step for this long is taken for hung."
    )
    drain_seconds: Seconds = Field(30.0, description="How long a stopping worker goes on with its running images.")
    checkpoint_seconds: Seconds = Field(
        2.0, description="How often the state of a running run is saved, for whoever has to go on with it."
    )
    max_attempts: int = Field(3, ge=1, description="Lost leases after which a run is failed.")


class EngineSettings(_Section):
    """The step loop of one device."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: bfloat16 where it is fast."
    )
    num_threads: int = Field(0, ge=0, description="CPU threads of the engine; 0: chosen by measurement at start.")
    backend: Literal["auto", "torch", "openvino", "graphs", "compiled"] = Field(
        "auto",
        description="What runs the networks. auto: on a CPU OpenVINO, where it is installed (`safelight[openvino]`) and"
        " measured to be faster for the model (which takes seconds; torch draws the first runs); on a GPU graphs."
        " openvino: whether it is faster or not. graphs: CUDA graphs of what torch runs. compiled: graphs, over blocks"
        " compiled by torch.compile when the model is loaded, which takes long the first time. Neither was measured on"
        " a GPU.",
    )
    max_resident_images: int = Field(
        16,
        ge=1,
        description="With so many images under way on a device no more runs are claimed, but for one of a higher"
        " priority than all that is held.",
    )
    max_batch_rows: int = Field(16, ge=2, description="Rows of one forward pass at most; a guided image has two.")
    model_memory_mb: int | None = Field(
        None,
        ge=1,
        description="Weights on one device, in millions of bytes; over it the least recently used model moves out."
        " Unset: three quarters of a GPU's memory, half of the host's for a CPU.",
    )
    drawing_memory_mb: int | None = Field(
        None,
        ge=1,
        description="Memory of one device, in millions of bytes, for what networks make while they draw: batches are"
        " kept within it, and pictures that cannot fit are refused. Unset: what a GPU has beside its weights; on a"
        " CPU no limit.",
    )
    host_memory_mb: int | None = Field(
        None,
        ge=0,
        description="Host memory, in millions of bytes, for models moved out of a GPU. Unset: half of it, shared by"
        " the GPUs; 0: they are dropped.",
    )
    prompt_cache_size: int = Field(
        256, ge=0, description="Encoded prompts kept; a long one counts for each of its windows."
    )


class WebhookSettings(_Section):
    """Outgoing deliveries."""

    allowed_networks: tuple[IPv4Network | IPv6Network, ...] = Field(
        (), description="Networks that may be called although they are not public, such as 127.0.0.0/8."
    )
    timeout_seconds: Seconds = Field(15.0, description="For one whole exchange.")
    max_concurrent_per_host: int = Field(2, ge=1, description="Deliveries at once to one host.")
    retry_seconds: tuple[float, ...] = Field(
        (0, 5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400),
        min_length=1,
        description="Wait before each try, the first included; a delivery has failed after the last.",
    )
    disable_after_days: float = Field(
        5.0, gt=0, description="A registered endpoint that only failed for this long is disabled."
    )


class LogSettings(_Section):
    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe line that is written."
    )
    format: Literal["text", "json"] = Field("text", description="One line of text or one JSON object per line.")


class TracingSettings(_Section):
    """OpenTelemetry; needs `pip install 'safelight[tracing]'`."""

    endpoint: str | None = Field(
        None,
        pattern=r"^https?://",
        description="Where spans are sent by OTLP over HTTP, such as http://127.0.0.1:4318/v1/traces; unset:"
        " there are none.",
    )
    sample_share: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of the calls that are traced; one that comes with a `traceparent` follows that.",
    )


class Settings(_Section):
    """Everything an operator can set."""

    data: Path = Field(Path("safelight-data"), description="Folder of the database, pictures and secrets.")
    hf_home: Path | None = Field(
        None, description="Hugging Face cache to look for weights in; unset: `HF_HOME`, or the usual one."
    )
    models: dict[str, Path] = Field(
        default_factory=dict, description="Identifier = folder or checkpoint file: weights the operator has."
    )
    catalog: Path | None = Field(None, description="TOML file with identifiers of your own; see docs/models.md.")
    server: ServerSettings = ServerSettings()
    store: StoreSettings = StoreSettings()
    worker: WorkerSettings = WorkerSettings()
    engine: EngineSettings = EngineSettings()
    webhooks: WebhookSettings = WebhookSettings()
    log: LogSettings = LogSettings()
    tracing: TracingSettings = TracingSettings()


def load_settings(
    file: Path | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> Settings:
    """Read the file, then the environment, then `flags` (dotted paths), each over the one before.
    Raises ConfigError."""
    environ = os.environ if environ is None else environ
    tree: dict[str, object] = {}
    path = file or (Path(environ[PREFIX + "CONFIG"]) if PREFIX + "CONFIG" in environ else None)
    if path is not None:
        tree = _read_toml(path)
    for name, text in environ.items():
        if name.startswith(PREFIX) and name not in NO_SETTINGS:
            _put(tree, name.removeprefix(PREFIX).lower().split("__"), _parse(text))
    for dotted, value in (flags or {}).items():
        if value is not None:
            _put(tree, dotted.split("."), value)
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        lines = (f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}" for wrong in error.errors())
        raise ConfigError("settings are wrong: " + "; ".join(lines)) from error


def require_shared_store(settings: Settings) -> None:
    """Raises ConfigError unless several machines can work on what `settings` name."""
    database = settings.store.database_url
    is_shared = database is not None and not database.get_secret_value().startswith("sqlite")
    needed = {"store.database_url": is_shared, "store.images_url": settings.store.images_url is not None}
    missing = [name for name, is_there in needed.items() if not is_there]
    if missing:
        message = f"other machines cannot reach this data folder: set {' and '.join(missing)}"
        raise ConfigError(f"{message} (PostgreSQL and a bucket; docs/operating.md, Several machines)")


def _read_toml(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"the settings file {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the settings file {path} is not TOML: {error}") from error


def _parse(text: str) -> object:
    """A value from the environment: TOML where it is TOML (numbers, lists, tables), else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _put(tree: dict[str, object], path: list[str], value: object) -> None:
    *parents, leaf = path
    for parent in parents:
        child = tree.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"{'.'.join(path)}: {parent} is not a section")
        tree = child
    tree[leaf] = value


def dump_settings(settings: Settings) -> str:
    """The whole tree as JSON, secrets included, for a child process's standard input. Never log it."""
    return settings.model_dump_json(context={"reveal": True})


def parse_settings(text: str) -> Settings:
    """What `dump_settings` wrote."""
    return Settings.model_validate_json(text)
