"""systemd: READY, STATUS, STOPPING, RELOADING and the watchdog, through the ``sdnotify`` package.

That package encodes latin-1 and swallows the error of a text that is not: everything here is made ASCII, and
READY and STATUS travel separately, so that a strange name in a status can never cost the READY. Without
systemd nothing happens.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import sdnotify


class Notifier:
    """``send`` carries one datagram; ``environment`` says whether the watchdog wants pings."""

    def __init__(
        self, send: Callable[[str], None] | None = None, environment: Mapping[str, str] = os.environ
    ) -> None:
        self._send: Callable[[str], None] = send or sdnotify.SystemdNotifier().notify
        self._status = ""
        self._watchdog_s = watchdog_interval_s(environment)
        self._pinged_s = float("-inf")

    @property
    def watchdog_s(self) -> float | None:
        """The period of pings (half of what systemd waits), None if it does not watch."""
        return self._watchdog_s

    def ready(self) -> None:
        self._send("READY=1")

    def status(self, text: str) -> None:
        """One line; sent when it differs from the last one."""
        line = " ".join(text.encode("ascii", "replace").decode("ascii").split())
        if line != self._status:
            self._status = line
            self._send(f"STATUS={line}")

    def reloading(self, monotonic_s: float) -> None:
        """Start of a reload, in one datagram with CLOCK_MONOTONIC, as Type=notify-reload wants it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={int(monotonic_s * 1e6)}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def extend_start(self, seconds: float) -> None:
        """Ask for more time before READY, while there is progress."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def progress(self, now_s: float) -> None:
        """The main loop has gone round: pings if one is due."""
        if self._watchdog_s is not None and now_s - self._pinged_s >= self._watchdog_s:
            self._pinged_s = now_s
            self._send("WATCHDOG=1")


def watchdog_interval_s(environment: Mapping[str, str]) -> float | None:
    """Half of WATCHDOG_USEC if it is meant for this process."""
    usec, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not usec.isdigit() or int(usec) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 2e6
