"""The log: what is in memory, what is on disk, and what of it may be handed out when."""

import pytest

from etcd_server.raft.confchange import Configuration
from etcd_server.raft.errors import LogGap
from etcd_server.raft.log import Log, Write
from etcd_server.raft.messages import Entry, EntryKind, Ready, Snapshot
from tests.golden.raft.lab import MemoryLog


def entry(index: int, term: int, data: bytes = b"x") -> Entry:
    return Entry(index, term, EntryKind.NORMAL, data)


def disk(*terms: int, cut: int = 0) -> MemoryLog:
    """A log on disk with one entry a term given, cut up to an index."""
    storage = MemoryLog()
    storage.save(Ready(1, entries=[entry(index, term) for index, term in enumerate(terms, 1)]))
    storage.cut(cut)
    return storage


def open_log(storage: MemoryLog, commit: int = 0, applied: int = 0, **limits: int) -> Log:
    limits = {"recent_entries": 100, "recent_bytes": 1 << 20, **limits}
    return Log(
        storage,
        commit=commit,
        applied=applied,
        recent_entries=limits["recent_entries"],
        recent_bytes=limits["recent_bytes"],
    )


def write(log: Log, storage: MemoryLog, number: int) -> Write:
    """Hands the unsaved entries out, as a Ready does."""
    unsaved = log.take_unsaved()
    begun = Write(number, log.handed_index, None, None)
    log.in_flight.append(begun)
    storage.save(Ready(number, entries=unsaved))
    return begun


def test_a_log_starts_from_what_is_on_disk() -> None:
    log = open_log(disk(1, 1, 2, 3, cut=2), commit=2, applied=3)
    assert (log.first_index(), log.last_index, log.last_term, log.stable_index) == (3, 4, 3, 4)
    assert (log.commit_index, log.applied_index) == (3, 3), "what was applied was committed"
    assert [log.term(index) for index in range(1, 6)] == [None, 1, 2, 3, None]


@pytest.mark.parametrize(
    ("commit", "applied", "text"),
    [
        (0, 1, "holds entries 3 to 4, the state has applied up to 1"),
        (0, 5, "holds entries 3 to 4, the state has applied up to 5"),
        (5, 4, "ends at 4, but entries up to 5 were committed"),
    ],
)
def test_a_log_with_a_gap_is_refused(commit: int, applied: int, text: str) -> None:
    """A lost suffix of the log would be taken for entries that never were (reliability: damaged means
    refused)."""
    with pytest.raises(LogGap, match=text):
        open_log(disk(1, 1, 2, 3, cut=2), commit=commit, applied=applied)


@pytest.mark.parametrize(
    ("last_index", "last_term", "expected"),
    [(3, 2, True), (4, 2, True), (2, 2, False), (9, 1, False), (1, 3, True)],
)
def test_up_to_date_compares_terms_then_lengths(last_index: int, last_term: int, expected: bool) -> None:
    """Raft thesis, section 3.6.1."""
    assert open_log(disk(1, 1, 2)).is_up_to_date(last_index, last_term) is expected


@pytest.mark.parametrize(
    ("index", "term", "expected"),
    [(6, 9, (5, 5)), (5, 4, (3, 2)), (4, 2, (3, 2)), (3, 1, (2, 1)), (2, 0, (0, 0)), (0, 0, (0, 0))],
)
def test_possible_match_skips_terms_that_cannot_agree(
    index: int, term: int, expected: tuple[int, int]
) -> None:
    """Raft thesis, section 3.5: one step back a term, not one an entry."""
    assert open_log(disk(1, 1, 2, 5, 5)).possible_match(index, term) == expected


def test_accept_keeps_what_is_there_and_replaces_what_differs() -> None:
    """Raft paper, figure 2, AppendEntries 3 and 4: an old, shorter message takes nothing away."""
    log = open_log(disk(1, 1, 2, 2), commit=1, applied=1)
    assert log.accept(4, 9, []) is None
    assert log.accept(2, 1, [entry(3, 2)]) == 3
    assert (log.last_index, log.take_unsaved()) == (4, ())
    assert log.accept(2, 1, [entry(3, 2), entry(4, 3), entry(5, 3)]) == 5
    assert [(new.index, new.term) for new in log.take_unsaved()] == [(4, 3), (5, 3)]
    assert (log.stable_index, log.handed_index, log.term(4)) == (3, 5, 3)


def test_a_committed_entry_is_never_replaced() -> None:
    log = open_log(disk(1, 1, 2), commit=3, applied=3)
    with pytest.raises(AssertionError, match="entry 2 is committed"):
        log.accept(1, 1, [entry(2, 5)])


def test_a_late_write_does_not_make_overwritten_entries_stable() -> None:
    """The ABA problem of asynchronous writes: index and term may even be those of the entry that came
    back."""
    storage = disk(1)
    log = open_log(storage, commit=1, applied=1)
    log.accept(1, 1, [entry(2, 2), entry(3, 2)])
    old = write(log, storage, 1)
    log.accept(1, 1, [entry(2, 3)])
    new = write(log, storage, 2)
    log.accept(2, 3, [entry(3, 3)])
    log.persisted(old)
    assert log.stable_index == 1
    log.persisted(new)
    assert log.stable_index == 2
    log.commit_to(3)
    assert [found.index for found in log.take_committed(1 << 20)] == [2], "entry 3 is not on disk"


def test_committed_entries_are_handed_out_once_and_in_pages() -> None:
    storage = disk(1, 1, 1, 1)
    log = open_log(storage, commit=4)
    pages = []
    while page := log.take_committed(2):
        pages.append([found.index for found in page])
    assert pages == [[1, 2], [3, 4]]


def test_reading_joins_disk_and_memory() -> None:
    storage = disk(1, 1)
    log = open_log(storage)
    log.accept(2, 1, [entry(3, 1), entry(4, 1, b"long entry")])
    assert [found.index for found in log.read(1, 5, 100)] == [1, 2]
    assert [found.index for found in log.read(3, 5, 100)] == [3, 4]
    assert [found.index for found in log.read(3, 5, 2)] == [3]
    assert [found.index for found in log.read(4, 5, 2)] == [4], "at least one"


@pytest.mark.parametrize("limits", [{"recent_entries": 10}, {"recent_bytes": 10 * 228}])
def test_memory_does_not_grow_with_the_log(limits: dict[str, int]) -> None:
    """Neither the number of entries nor their bytes; what is left can all be read, from memory or disk."""
    storage = MemoryLog()
    log = open_log(storage, **limits)
    for index in range(1, 1000):
        log.append(entry(index, 1, b"x" * 100))
        log.persisted(write(log, storage, index))
        log.in_flight.clear()
        log.commit_to(index)
        log.take_committed(1 << 20)
        log.trim()
        assert len(log._entries) <= 20
    assert log.term(1) == log.term(999) == 1
    assert log.read(1, 1000, 0)[0].index == 1
    assert log.read(999, 1000, 0)[0].index == 999


def test_what_is_not_applied_or_not_on_disk_stays_in_memory() -> None:
    storage = MemoryLog()
    log = open_log(storage, recent_entries=1)
    for index in range(1, 11):
        log.append(entry(index, 1))
    log.trim()
    assert len(log._entries) == 10
    log.persisted(write(log, storage, 1))
    log.trim()
    assert len(log._entries) == 10
    log.commit_to(7)
    log.take_committed(1 << 20)
    log.trim()
    assert [kept.index for kept in log._entries] == [8, 9, 10]


def test_a_snapshot_replaces_the_log() -> None:
    """Raft thesis, section 5.1. Writes that were under way count for nothing any more."""
    storage = disk(1, 1)
    log = open_log(storage, commit=1, applied=1)
    log.accept(2, 1, [entry(3, 1)])
    old = write(log, storage, 1)
    snapshot = Snapshot(9, 4, Configuration((1,)))
    log.restore(snapshot)
    assert (log.first_index(), log.last_index, log.last_term, log.applied_index) == (10, 9, 4, 9)
    assert (log.term(9), log.term(3), log.term(10)) == (4, None, None)
    assert log.accept(9, 4, [entry(10, 4)]) == 10
    installed = Write(2, 9, None, snapshot)
    log.persisted(old)
    assert log.stable_index == 9
    storage.save(Ready(2, snapshot=snapshot))
    log.persisted(installed)
    assert (log.first_index(), log.term(9)) == (10, 4)
