"""Where each watcher stands: what it has been given, and what has to happen before it is given more.

Every watcher is in one of five places. SYNCED: it has everything up to the current revision and gets each
change as it comes. LAGGING: it wants history. HELD: its stream reads too slowly. FUTURE: it begins at a
revision that is not there yet. ENDED: it gets nothing more. A watcher has been given exactly the changes
from its start to its position, so it can go back to history at any time and nothing is lost, repeated,
reordered or torn; memory holds positions, never undelivered events.

Knows ranges and revisions; makes no responses. After etcd server/storage/mvcc/watcher_group.go (synced and
unsynced groups), with the "victims" of that design replaced by positions.
"""

from __future__ import annotations

from collections import OrderedDict
from math import inf

from etcd_server.api.encoding import integer_field
from etcd_server.api.keys import Interval
from etcd_server.machine.watch_index import RangeIndex

NOWHERE, SYNCED, LAGGING, HELD, FUTURE, ENDED = range(6)


class Audience:
    """The SYNCED watchers of one range that want one form of events: they share the bytes of each change."""

    __slots__ = ("count", "form", "last_event_revision", "members")

    def __init__(self, form: int) -> None:
        self.form = form
        self.count = 0
        self.last_event_revision = 0
        self.members: dict[bytes, dict[int, Watcher]] = {}
        """watch_id field -> stream id -> watcher. Streams number their watchers alike, so that most of
        those who watch the same range share whole responses."""


class Group:
    """A watched range: all who watch it, in whatever place."""

    __slots__ = ("audiences", "interval", "watchers")

    def __init__(self, interval: Interval) -> None:
        self.interval = interval
        self.watchers = 0
        self.audiences: dict[int, Audience] = {}


class Stream:
    """One Watch call."""

    __slots__ = (
        "future",
        "lagging",
        "next_watch_id",
        "paused",
        "progress_due_s",
        "progress_wanted",
        "progress_watchers",
        "stream_id",
        "watchers",
    )

    def __init__(self, stream_id: int) -> None:
        self.stream_id = stream_id
        self.watchers: dict[int, Watcher] = {}
        self.next_watch_id = 0
        self.paused = False
        self.lagging = 0
        self.future = 0
        self.progress_wanted = False
        """A progress request waits for an answer."""
        self.progress_watchers: dict[int, Watcher] = {}
        """Those that asked for a progress notice at each interval."""
        self.progress_due_s = inf

    def free_watch_id(self) -> int:
        """The next number; those taken by clients' own choice are passed over, those freed are not used
        again."""
        while self.next_watch_id in self.watchers:
            self.next_watch_id += 1
        self.next_watch_id += 1
        return self.next_watch_id - 1


class Watcher:
    """One watch. `position` is the first revision it has not been given (not kept up while it is SYNCED)."""

    __slots__ = (
        "form",
        "group",
        "id_field",
        "place",
        "position",
        "quiet_since",
        "stream",
        "told",
        "watch_id",
    )

    def __init__(self, stream: Stream, watch_id: int, group: Group, form: int, position: int) -> None:
        self.stream = stream
        self.watch_id = watch_id
        self.id_field = integer_field(2, watch_id)
        self.group = group
        self.form = form
        self.position = position
        self.place = NOWHERE
        self.told = False
        """Events were sent in this progress interval, beside those that the audience remembers."""
        self.quiet_since = 0
        """The revision at which this progress interval began, or at which it joined the audience."""

    def was_told(self) -> bool:
        """Whether events were sent to it in this progress interval."""
        if self.told or self.place != SYNCED:
            return self.told
        return self.group.audiences[self.form].last_event_revision > self.quiet_since


class Places:
    """All watchers of a hub, and the revision that they are behind or abreast of."""

    def __init__(self, revision: int) -> None:
        self.revision = revision
        self.index: RangeIndex[Group] = RangeIndex()
        self.lagging: OrderedDict[int, dict[Watcher, None]] = OrderedDict()
        """Position -> watchers. Whoever is served goes to the end: one that is far behind starves no
        other."""
        self.next_future: float = inf
        """The lowest revision that a watcher waits for."""
        self._future: dict[int, dict[Watcher, None]] = {}

    def group(self, interval: Interval) -> Group:
        """The group of a range, for one more watcher."""
        group = self.index.get(interval)
        if group is None:
            group = Group(interval)
            self.index.add(interval, group)
        group.watchers += 1
        return group

    def settle(self, watcher: Watcher) -> None:
        """Put a watcher that is nowhere where its position belongs."""
        stream = watcher.stream
        if stream.paused:
            watcher.place = HELD
        elif watcher.position <= self.revision:
            watcher.place = LAGGING
            stream.lagging += 1
            self.lagging.setdefault(watcher.position, {})[watcher] = None
        else:
            watcher.place = SYNCED
            watcher.quiet_since = self.revision
            audience = watcher.group.audiences.get(watcher.form)
            if audience is None:
                audience = watcher.group.audiences[watcher.form] = Audience(watcher.form)
            audience.count += 1
            audience.members.setdefault(watcher.id_field, {})[stream.stream_id] = watcher

    def wait(self, watcher: Watcher) -> None:
        """Put a watcher that is nowhere among those that wait for the revision of their position."""
        watcher.place = FUTURE
        watcher.stream.future += 1
        self._future.setdefault(watcher.position, {})[watcher] = None
        self.next_future = min(self.next_future, watcher.position)

    def release_future(self, revision: int) -> None:
        """Settle the watchers that wait for `revision` or an earlier one: they are SYNCED if it is the
        next."""
        for position in sorted(position for position in self._future if position <= revision):
            for watcher in list(self._future[position]):
                self.leave(watcher)
                self.settle(watcher)

    def leave(self, watcher: Watcher) -> None:
        """Take a watcher out of its place; its position then says what it has not been given."""
        if watcher.place == SYNCED:
            watcher.told = watcher.was_told()
            watcher.position = self.revision + 1
            audience = watcher.group.audiences[watcher.form]
            audience.count -= 1
            members = audience.members[watcher.id_field]
            del members[watcher.stream.stream_id]
            if not members:
                del audience.members[watcher.id_field]
        elif watcher.place == LAGGING:
            watcher.stream.lagging -= 1
            _remove(self.lagging, watcher)
        elif watcher.place == FUTURE:
            watcher.stream.future -= 1
            _remove(self._future, watcher)
            if watcher.position not in self._future:
                self.next_future = min(self._future, default=inf)
        watcher.place = NOWHERE

    def end(self, watcher: Watcher) -> None:
        """A watcher gets nothing more. Its stream may still know it."""
        if watcher.place == ENDED:
            return
        self.leave(watcher)
        watcher.place = ENDED
        watcher.stream.progress_watchers.pop(watcher.watch_id, None)
        watcher.group.watchers -= 1
        if watcher.group.watchers == 0:
            self.index.remove(watcher.group.interval)


def _remove(waiting: dict[int, dict[Watcher, None]], watcher: Watcher) -> None:
    watchers = waiting[watcher.position]
    del watchers[watcher]
    if not watchers:
        del waiting[watcher.position]
