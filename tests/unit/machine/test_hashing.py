"""The hash of the key space: it follows from revision and compacted revision, and from nothing else."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from google_crc32c import value

from etcd_server.api import errors
from etcd_server.machine.hashing import KeySpaceHash
from tests.unit.machine.machines import ALL, Lab
from tests.unit.machine.operations import delete, put, txn

MANY = 1 << 30


def hashed(lab: Lab, revision: int = 0, rows: int = MANY, size_bytes: int = MANY) -> int:
    unfinished = lab.machine.begin_hash(revision)
    while lab.machine.hash_step(unfinished, rows, size_bytes):
        pass
    return unfinished.value


def change(lab: Lab, draw: random.Random) -> None:
    keys = [b"a", b"b", b"c", b"d"]
    match draw.randrange(4):
        case 0:
            lab.delete(draw.choice(keys), draw.choice([b"", b"", b"\0"]))
        case 1:
            lab.txn(txn(then=[put(b"a", b"1"), put(b"b", b"2", lease=7), delete(b"c")]))
        case _:
            lab.put(draw.choice(keys), bytes(draw.randrange(200)), lease=draw.choice([0, 7]))


def all_hashes(lab: Lab) -> dict[int, int]:
    first = max(lab.machine.compacted_revision, 0)
    return {revision: hashed(lab, revision) for revision in range(first, lab.machine.revision + 1)}


def test_the_example_of_etcds_bytes(lab: Lab) -> None:
    """The CRC of the bytes that etcd's database has after a put and a deletion."""

    def at(main: int) -> bytes:
        return main.to_bytes(8, "big") + b"_" + bytes(8)

    assert hashed(lab) == value(b"key")
    lab.grant(5)
    lab.put(b"k", b"v", lease=5)
    kept = b"key" + at(2) + b"\x0a\x01k\x10\x02\x18\x02\x20\x01\x2a\x01v\x30\x05"
    assert hashed(lab) == value(kept)
    lab.delete(b"k")
    assert hashed(lab) == value(kept + at(3) + b"t" + b"\x0a\x01k")
    assert hashed(lab, 2) == value(kept)


@pytest.mark.parametrize("seed", range(5))
def test_neither_steps_nor_the_progress_of_a_compaction_matter(lab: Lab, seed: int) -> None:
    draw = random.Random(seed)
    lab.grant(7)
    compacted = 1
    for _ in range(4):
        for _ in range(25):
            change(lab, draw)
        if draw.randrange(3) == 0:
            lab.delete(**ALL)
        compacted = draw.randrange(compacted + 1, lab.machine.revision + 1)
        lab.compact(compacted)
        expected = all_hashes(lab)
        while lab.machine.compaction_pending:
            lab.machine.compact_step(7)
            for revision in draw.choices(sorted(expected), k=3):
                assert (
                    hashed(lab, revision, draw.choice([1, 3, MANY]), draw.choice([1, MANY]))
                    == expected[revision]
                )
        assert all_hashes(lab) == expected


def test_neither_crashes_nor_replays_matter(lab: Lab, tmp_path: Path) -> None:
    draw = random.Random(1)
    lab.grant(7)
    for number in range(60):
        change(lab, draw)
        if number == 30:
            lab.machine.commit()
            lab.compact(lab.machine.revision - 5)
    expected = all_hashes(lab)
    lab.crash()
    lab.replay()
    assert all_hashes(lab) == expected
    (tmp_path / "other").mkdir()
    other = Lab(tmp_path / "other")
    other.entries = lab.entries
    other.replay()
    assert all_hashes(other) == expected
    other.put(b"a", b"another")
    assert hashed(other) != hashed(lab)
    other.machine.database.close()


def test_what_can_be_asked_for(lab: Lab) -> None:
    for number in range(5):
        lab.put(b"k%d" % number)
    lab.compact(4)
    with pytest.raises(errors.Compacted):
        lab.machine.begin_hash(3)
    with pytest.raises(errors.FutureRevision):
        lab.machine.begin_hash(7)
    assert hashed(lab, 6) == hashed(lab, 0) != hashed(lab, 5)
    # etcd takes these: there is nothing below them.
    assert hashed(lab, -1) == hashed(lab, -(1 << 63))


def test_all_that_is_replicated(lab: Lab) -> None:
    def everything() -> int:
        unfinished: KeySpaceHash = lab.machine.begin_hash(0, with_facts=True)
        while lab.machine.hash_step(unfinished, MANY, MANY):
            pass
        return unfinished.value

    seen = [everything()]
    lab.grant(7)
    seen.append(everything())
    lab.alarm(1, 1, 3)
    seen.append(everything())
    lab.alarm(2, 1, 3)
    assert everything() == seen[1]
    lab.put(b"k")
    seen.append(everything())
    assert len(set(seen)) == 4
