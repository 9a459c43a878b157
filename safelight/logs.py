"""How log lines look: one line of text or one JSON object. What must never be in one is taken out here, last."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

from safelight.config import LogSettings

_SECRET = re.compile(r"(sl_live_[0-9A-Za-z]{4})[0-9A-Za-z]+|(hf_)[0-9A-Za-z]{8,}|(whsec_)[0-9A-Za-z+/=]+")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


def configure_logging(settings: LogSettings, *, process: str) -> None:
    """Send every record of this process to stderr in the form that `settings` names. `process` marks each line."""
    output = logging.StreamHandler(sys.stderr)
    output.setFormatter(JsonFormatter(process) if settings.format == "json" else TextFormatter(process))
    root = logging.getLogger()
    root.handlers[:] = [output]
    root.setLevel(settings.level.upper())
    for noisy in (
        "alembic",
        "boto3",
        "botocore",
        "httpx2",
        "httpcore2",
        "sqlalchemy.engine",
        "urllib3",
        "uvicorn.access",
    ):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def redact(text: str) -> str:
    """`text` with keys, tokens and secrets cut to their prefix."""
    return _SECRET.sub(lambda match: f"{match[1] or match[2] or match[3]}[redacted]", text)


class TextFormatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        extra = "".join(f" {key}={value}" for key, value in _extras(record))
        line = f"{_time(record)} {record.levelname.lower():7} {self._process}: {record.getMessage()}{extra}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return redact(line)


class JsonFormatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line = {"at": _time(record), "level": record.levelname.lower(), "process": self._process}
        line |= {"logger": record.name, "message": record.getMessage()}
        line |= {key: str(value) for key, value in _extras(record)}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return redact(json.dumps(line, ensure_ascii=False))


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _extras(record: logging.LogRecord) -> Iterator[tuple[str, object]]:
    return ((key, value) for key, value in vars(record).items() if key not in _STANDARD)
