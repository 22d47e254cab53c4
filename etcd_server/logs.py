"""What the server writes about itself: one line for each message, in the form of etcd's own (zap), so that
what reads etcd's logs reads these.

json:     {"level":"info","ts":"2026-01-02T03:04:05.678901Z","caller":"etcd_server/cli.py:9","msg":"..."}
console:  the same fields separated by tabs, the further ones as a JSON object at the end

Further fields are what a message was given as `extra`. There is no message for a single request.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler

from etcd_server.config import ConfigError

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "panic": logging.CRITICAL,
    "fatal": logging.CRITICAL,
}
_NAMES = {
    logging.DEBUG: "debug",
    logging.INFO: "info",
    logging.WARNING: "warn",
    logging.ERROR: "error",
    logging.CRITICAL: "fatal",
}
# Under systemd standard error is the journal.
_TO_STANDARD_ERROR = frozenset({"default", "stderr", "systemd/journal"})
_OF_EVERY_RECORD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
_PACKAGE_PARENT = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


class JSONFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        head = {"level": _level(record), "ts": _time(record), "caller": _caller(record)}
        return _json({**head, "msg": record.getMessage(), **_fields(self, record)})


class ConsoleFormatter(logging.Formatter):
    """Time, level, caller and text separated by tabs, then the further fields as JSON."""

    def format(self, record: logging.LogRecord) -> str:
        parts = [_time(record), _level(record), _caller(record), record.getMessage()]
        fields = _fields(self, record)
        return "\t".join([*parts, _json(fields)] if fields else parts)


def configure(level: str, form: str, outputs: Sequence[str]) -> None:
    """Send the messages of this process where --log-outputs says.

    outputs: "default" or "stderr", "stdout", or paths of files, which are opened anew when they have been
    moved away. Raises ConfigError when a file cannot be opened.
    """
    formatter = JSONFormatter() if form == "json" else ConsoleFormatter()
    handlers = [_handler(output) for output in outputs]
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    for handler in handlers:
        handler.setFormatter(formatter)
        root.addHandler(handler)
    root.setLevel(LEVELS[level])
    # A message that cannot be written must not end the server, nor be reported to a stream that fails alike.
    logging.raiseExceptions = False


def to_standard_error(outputs: Sequence[str]) -> bool:
    """Whether messages go to standard error."""
    return not _TO_STANDARD_ERROR.isdisjoint(outputs)


def reopen() -> None:
    """Open log files again: they may have been moved away (logrotate)."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, WatchedFileHandler):
            handler.acquire()
            try:
                handler.reopenIfNeeded()
            finally:
                handler.release()


def _handler(output: str) -> logging.Handler:
    if output == "stdout":
        return logging.StreamHandler(sys.stdout)
    if output in _TO_STANDARD_ERROR:
        return logging.StreamHandler(sys.stderr)
    try:
        return WatchedFileHandler(output, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--log-outputs: cannot open {output}: {error.strerror}") from error


def _level(record: logging.LogRecord) -> str:
    return _NAMES.get(record.levelno, record.levelname.lower())


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _caller(record: logging.LogRecord) -> str:
    return f"{record.pathname.removeprefix(_PACKAGE_PARENT)}:{record.lineno}"


def _fields(formatter: logging.Formatter, record: logging.LogRecord) -> dict[str, object]:
    fields = {key: value for key, value in vars(record).items() if key not in _OF_EVERY_RECORD}
    if record.exc_info and record.exc_info[1] is not None:
        fields["error"] = str(record.exc_info[1])
        fields["stacktrace"] = formatter.formatException(record.exc_info)
    return fields


def _json(fields: dict[str, object]) -> str:
    return json.dumps(fields, default=str, ensure_ascii=False, separators=(",", ":"))
