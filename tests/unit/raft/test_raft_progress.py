"""What a leader may send to a follower: probe, replicate, snapshot, and the window of unanswered messages."""

import pytest

from etcd_server.raft.progress import Progress, ProgressState

PROBE, REPLICATE, SNAPSHOT = ProgressState.PROBE, ProgressState.REPLICATE, ProgressState.SNAPSHOT


def replicating(match: int = 5, window: int = 2) -> Progress:
    progress = Progress(match + 1, window)
    progress.accepted(match, 1)
    return progress


def test_a_probe_waits_for_its_answer() -> None:
    progress = Progress(6, 2)
    assert (progress.state, progress.paused) == (PROBE, False)
    progress.sent(7, 2, 0)
    assert progress.paused and progress.next_index == 6
    assert progress.accepted(7, 1)
    assert (progress.state, progress.match_index, progress.next_index) == (REPLICATE, 7, 8)


def test_replication_runs_ahead_within_its_window() -> None:
    progress = replicating()
    progress.sent(6, 1, 5)
    progress.sent(8, 2, 5)
    assert progress.paused and progress.full and progress.next_index == 9
    progress.recheck = True
    assert not progress.paused, "one message is allowed, to find out what was lost"
    assert progress.accepted(6, 1)
    assert not progress.full
    assert not progress.accepted(6, 1), "the second time it is no news"


def test_messages_without_entries_do_not_fill_the_window() -> None:
    progress = replicating()
    for commit in range(10):
        progress.sent(5, 0, commit)
    assert not progress.paused


@pytest.mark.parametrize(
    ("rejected", "hint", "next_index"), [(9, 7, 8), (9, 3, 6), (9, 9, 9)], ids=["hint", "match", "no hint"]
)
def test_a_rejected_probe_goes_back_to_the_hint_and_never_behind_the_match(
    rejected: int, hint: int, next_index: int
) -> None:
    progress = replicating()
    progress.become_probe()
    progress.next_index = 10
    assert progress.rejected(rejected, hint)
    assert (progress.state, progress.next_index) == (PROBE, next_index)


def test_old_rejections_change_nothing() -> None:
    progress = replicating()
    assert not progress.rejected(5, 0)
    progress.become_probe()
    assert not progress.rejected(9, 0), "the probe was for another index"
    assert (progress.match_index, progress.next_index) == (5, 6)


def test_a_rejection_while_replicating_means_that_something_was_lost() -> None:
    progress = replicating()
    progress.sent(8, 3, 5)
    assert progress.rejected(8, 5)
    assert (progress.state, progress.next_index, len(progress.inflights)) == (PROBE, 6, 0)


def test_a_snapshot_blocks_until_it_has_arrived() -> None:
    progress = replicating()
    progress.become_snapshot(100)
    assert progress.paused and not progress.rejected(9, 0)
    progress.accepted(50, 99)
    assert progress.state is SNAPSHOT, "50 is still behind the log"
    progress.accepted(100, 99)
    assert (progress.state, progress.next_index) == (REPLICATE, 101)


def test_after_a_snapshot_the_probe_starts_behind_it() -> None:
    progress = replicating()
    progress.become_snapshot(100)
    progress.become_probe()
    assert (progress.state, progress.next_index, progress.pending_snapshot) == (PROBE, 101, 0)
