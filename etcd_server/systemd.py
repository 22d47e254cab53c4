"""What systemd is told about the process (sd_notify(3)), through the sdnotify package."""

from __future__ import annotations

import os

import sdnotify


class Systemd:
    """What systemd is told. Without systemd every call is nothing (no NOTIFY_SOCKET)."""

    def __init__(self) -> None:
        self._notifier = sdnotify.SystemdNotifier()
        for_us = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        watchdog_us = os.environ.get("WATCHDOG_USEC", "")
        self._interval_s = int(watchdog_us) / 2e6 if for_us and watchdog_us.isdecimal() else 0.0
        self._pinged_s = 0.0
        self._status = ""

    def tell(self, state: str) -> None:
        # sdnotify encodes latin-1 and loses a message that it cannot encode.
        self._notifier.notify(state.encode("ascii", "replace").decode())

    def status(self, text: str) -> None:
        if text != self._status:
            self._status = text
            self.tell(f"STATUS={text}")

    def extend_timeout(self, seconds: float) -> None:
        """A start that takes its time is not to be ended for that: so much longer from now on."""
        self.tell(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")

    def ping(self, now: float) -> None:
        """The loop is alive: called from each turn, told at half the watchdog's time."""
        if self._interval_s and now - self._pinged_s >= self._interval_s:
            self._pinged_s = now
            self.tell("WATCHDOG=1")
