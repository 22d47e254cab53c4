"""Automatic compaction, as etcd's two compactors do it (server/etcdserver/api/v3compactor).

Mode "periodic" keeps the revisions of the last `retention` seconds: the revision is sampled ten times an
interval (the interval is the retention, or an hour if that is shorter), and once an interval the revision of
`retention` ago is compacted. Mode "revision" keeps the last `retention` revisions and looks every five
minutes. Only the leader compacts.
"""

from __future__ import annotations

from collections import deque

REVISION_INTERVAL_S = 300.0
LONGEST_INTERVAL_S = 3600.0
SAMPLES_AN_INTERVAL = 10


class Compactor:
    """Says which revision to compact now; pure, time is an argument."""

    def __init__(self, mode: str, retention: float) -> None:
        self._mode = mode
        self._retention = retention
        self._interval_s = min(retention, LONGEST_INTERVAL_S) if mode == "periodic" else REVISION_INTERVAL_S
        self._samples: deque[tuple[float, int]] = deque()
        self._compacted_s: float | None = None

    def due(self, revision: int, now: float) -> int:
        """The revision to compact, or 0. Call it every tick of the leader."""
        if self._retention <= 0:
            return 0
        if self._compacted_s is None:
            self._compacted_s = now
        return (
            self._due_by_time(revision, now)
            if self._mode == "periodic"
            else self._due_by_revision(revision, now)
        )

    def _due_by_time(self, revision: int, now: float) -> int:
        samples = self._samples
        if not samples or now - samples[-1][0] >= self._interval_s / SAMPLES_AN_INTERVAL:
            samples.append((now, revision))
        assert self._compacted_s is not None
        if now - self._compacted_s < self._interval_s:
            return 0
        target = 0
        while samples and now - samples[0][0] >= self._retention:
            target = samples.popleft()[1]
        if target:
            self._compacted_s = now
        return target

    def _due_by_revision(self, revision: int, now: float) -> int:
        assert self._compacted_s is not None
        if now - self._compacted_s < self._interval_s:
            return 0
        self._compacted_s = now
        return max(0, revision - int(self._retention))

    def reset(self) -> None:
        """The member no longer leads: what was sampled is forgotten."""
        self._samples.clear()
        self._compacted_s = None
