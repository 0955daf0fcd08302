"""The log of ``nixery-core serve``, on standard error: one JSON document a line, or lines for a person."""

from __future__ import annotations

import functools
import json
import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

from nixery_core._redact import redact
from nixery_core.server.request_id import current_request_id

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=str).encode
# what every record has is no news
_USUAL = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


class JsonFormatter(logging.Formatter):
    r"""Writes a record as one line of JSON: what was given as *extra* stands beside the message.

    >>> record = logging.makeLogRecord({"msg": "a\nb", "created": 0, "name": "n", "levelname": "INFO", "status": 200})
    >>> JsonFormatter().format(record)
    '{"time":"1970-01-01T00:00:00.000Z","level":"info","logger":"n","message":"a\\nb","status":200}'
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, secrets masked."""
        values: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _masked(record.getMessage()),
        }
        identity = current_request_id()
        if identity:
            values["request_id"] = identity
        for name, value in vars(record).items():
            if name not in _USUAL:
                values[name] = _masked(value) if isinstance(value, str) else value
        if record.exc_info:
            values["exception"] = redact(self.formatException(record.exc_info))
        return _encode(values)


def _masked(text: str) -> str:
    # one line for each request: what cannot hold a secret is not searched for one
    return redact(text) if "@" in text or "=" in text else text


class TextFormatter(logging.Formatter):
    """Writes a record for a person, the identity of the request at the end."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text, secrets masked; a record of several lines is indented."""
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        identity = current_request_id()
        end = f" [{identity}]" if identity else ""
        return f"{_time(record)} {record.levelname:7} " + redact(text).replace("\n", "\n  ") + end


def configure_logging(style: str, level: str, stream: TextIO | None = None) -> None:
    """Send the log of this process to *stream* (standard error): ``json``, ``text`` or ``auto``."""
    stream = sys.stderr if stream is None else stream
    plain = style == "text" or (style == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextFormatter() if plain else JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # it says what our own lines say, without the identity
    logging.getLogger("uvicorn.access").disabled = True


@functools.lru_cache(4)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()[:19]


def _time(record: logging.LogRecord) -> str:
    return f"{_second(int(record.created))}.{int(record.created * 1000) % 1000:03}Z"
