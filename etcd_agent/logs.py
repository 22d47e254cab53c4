"""Log lines: plain text, journald's priorities, or JSON. One line for each record, whatever its text
holds."""

from __future__ import annotations

import json
import logging
import sys
from typing import TextIO

_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        stamp = self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}"
        return f"{stamp} {record.levelname.lower():7s} {_line(self, record)}"


class _Journal(logging.Formatter):
    """``<N>`` before the text: sd-daemon(3). The journal has its own clock."""

    def format(self, record: logging.LogRecord) -> str:
        return f"<{_PRIORITIES.get(record.levelno, 6)}>{_line(self, record)}"


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(
            {
                "time": record.created,
                "level": record.levelname.lower(),
                "logger": record.name,
                "message": _line(self, record),
            }
        )


def _line(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    text = record.getMessage()
    if record.exc_info:
        text += " | " + formatter.formatException(record.exc_info).replace("\n", " | ")
    return " ".join(text.splitlines())


_FORMATTERS: dict[str, type[logging.Formatter]] = {"text": _Text, "journal": _Journal, "json": _Json}


def set_up(level: str, style: str, stream: TextIO | None = None) -> None:
    """Send records from ``level`` up to ``stream`` (standard error) as text, journal or json."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_FORMATTERS[style]())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("urllib3", "requests"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
