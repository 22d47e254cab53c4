"""Compaction: what becomes unreadable at once, which rows go, and that nothing live does."""

import pytest

from etcd_server.api import errors
from etcd_server.storage.schema import pack
from tests.unit.machine.machines import ALL, Lab
from tests.unit.machine.operations import delete, nested, put, txn


@pytest.fixture
def example(lab: Lab) -> Lab:
    """The worked example of mvcc.py: a put at 2 and 3, deleted at 4, put at 5."""
    lab.put(b"a", b"1")
    lab.put(b"a", b"2")
    lab.delete(b"a")
    lab.put(b"a", b"3")
    return lab


def revisions(lab: Lab) -> list[int]:
    """Main revisions of the rows that are there."""
    return [row[0] >> 24 for row in lab.rows("revisions")]


@pytest.mark.parametrize(
    ("revision", "left"),
    [(0, [2, 3, 4, 5]), (2, [2, 3, 4, 5]), (3, [3, 4, 5]), (4, [4, 5]), (5, [5])],
)
@pytest.mark.parametrize("rows_a_step", [1, 2, 1000])
def test_what_is_left(example: Lab, revision: int, left: list[int], rows_a_step: int) -> None:
    assert example.compact(revision) == 5
    example.finish_compaction(rows_a_step)
    assert revisions(example) == left
    assert example.keys() == [b"a"]
    example.check_tables()


def test_the_same_in_two_compactions(example: Lab) -> None:
    for revision in (4, 5):
        example.compact(revision)
        example.finish_compaction()
    assert revisions(example) == [5]


def test_a_tombstone_at_the_compacted_revision_stays_for_watches_from_there(example: Lab) -> None:
    example.compact(4)
    example.finish_compaction()
    rows = example.machine.events_since(4, 5, 10)
    assert [(row[0], row[1]) for row in rows] == [(pack(4), True), (pack(5), False)]


def test_a_later_compaction_takes_the_tombstone_even_if_steps_have_passed_it(example: Lab) -> None:
    example.compact(4)
    while example.machine.compaction_pending:
        example.machine.compact_step(1)
    example.put(b"b")
    example.compact(6)
    example.finish_compaction(1)
    assert revisions(example) == [5, 6]


def test_a_compaction_that_overtakes_another_in_the_middle_of_a_revision(lab: Lab) -> None:
    for key in (b"a", b"b", b"c", b"d"):
        lab.put(key)
    lab.delete(**ALL)
    lab.put(b"e")
    lab.compact(6)
    for _ in range(6):
        lab.machine.compact_step(1)
    lab.compact(7)
    lab.finish_compaction(1)
    assert revisions(lab) == [7]
    assert lab.rows("history") == []


def test_what_can_be_compacted(example: Lab) -> None:
    with pytest.raises(errors.FutureRevision):
        example.compact(6)
    with pytest.raises(errors.Compacted):
        example.compact(-1)
    example.compact(0)
    with pytest.raises(errors.Compacted):
        example.compact(0)
    example.compact(5)
    with pytest.raises(errors.Compacted):
        example.compact(5)
    assert example.machine.compacted_revision == 5


def test_readers_never_notice_how_far_the_steps_are(lab: Lab) -> None:
    for number in range(30):
        lab.put(b"k%d" % (number % 5), b"%d" % number)
        if number % 7 == 6:
            lab.delete(b"k%d" % (number % 5))
    wanted = [lab.range(**ALL, revision=at) for at in range(15, lab.machine.revision + 1)]
    lab.compact(15)
    steps = 0
    while True:
        assert [lab.range(**ALL, revision=at) for at in range(15, lab.machine.revision + 1)] == wanted
        with pytest.raises(errors.Compacted):
            lab.range(**ALL, revision=14)
        if not lab.machine.compact_step(2):
            break
        steps += 1
    assert steps > 3
    lab.check_tables()


def test_steps_go_on_after_a_crash(lab: Lab) -> None:
    for number in range(20):
        lab.put(b"a", b"%d" % number)
    lab.compact(20)
    lab.machine.compact_step(5)
    lab.machine.commit()
    lab.machine.compact_step(5)
    lab.crash()
    assert lab.machine.compaction_pending
    assert lab.machine.compacted_revision == 20
    lab.finish_compaction(5)
    assert revisions(lab) == [20, 21]
    lab.check_tables()
    lab.machine.commit()
    lab.crash()
    assert not lab.machine.compaction_pending


def test_the_revision_does_not_depend_on_the_rows_that_are_left(lab: Lab) -> None:
    lab.put(b"a")
    lab.delete(b"a")
    lab.compact(3)
    lab.finish_compaction()
    lab.put(b"b")
    lab.delete(b"b")
    lab.compact(5)
    lab.finish_compaction()
    lab.machine.commit()
    lab.crash()
    assert lab.machine.revision == 5
    assert lab.put(b"c").header.revision == 6


def test_no_steps_without_a_compaction(lab: Lab) -> None:
    lab.put(b"a")
    assert not lab.machine.compaction_pending
    assert lab.machine.compact_step(10) is False


def test_a_key_written_twice_in_one_revision(lab: Lab) -> None:
    lab.txn(txn(then=[nested(then=[put(b"a", b"1")]), nested(then=[delete(b"a")])]))
    lab.txn(txn(then=[delete(b"a", b"\0"), put(b"a", b"2")]))
    lab.compact(3)
    lab.finish_compaction()
    assert [row[0] for row in lab.rows("revisions")] == [pack(3, 0)]
    assert lab.rows("history") == []
