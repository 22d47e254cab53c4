"""The statements as such: that each reads through an index, and what the machine's tests do not reach."""

from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from etcd_server.storage.database import StateDatabase
from etcd_server.storage.schema import (
    STATE_SCHEMA,
    STATE_SCHEMA_VERSION,
    last_of,
    main_revision,
    pack,
)
from etcd_server.storage.tables import Column, FactTables, KeyTables, MemberRow, Selection, StatementError


@pytest.fixture
def database(tmp_path: Path) -> Iterator[StateDatabase]:
    database = StateDatabase.open(str(tmp_path / "state.db"), STATE_SCHEMA, STATE_SCHEMA_VERSION)
    yield database
    database.close()


def test_packed_revisions() -> None:
    assert pack(5, 3) == 5 * 2**24 + 3
    assert main_revision(pack(5, 2**24 - 1)) == 5
    assert last_of(5) + 1 == pack(6)
    assert pack(2**39 - 1, 2**24 - 1) == 2**63 - 1


def plans(database: StateDatabase, selections: list[tuple[bytes | None, Selection]]) -> list[list[str]]:
    """The query plans of the statements that these selections run."""
    seen: list[str] = []

    def trace(cursor: apsw.Cursor, statement: str, bindings: object) -> bool:
        seen.append(statement)
        return True

    tables = KeyTables(database.connection)
    database.connection.exec_trace = trace
    for high, selection in selections:
        tables.select(b"a", high, selection)
        tables.count(b"a", high, selection.at)
    database.connection.exec_trace = None
    names = ("low", "high", "at", "limit", "min_mod", "max_mod", "min_create", "max_create")
    bindings = dict.fromkeys(names)
    return [
        [row[3] for row in database.connection.execute(f"EXPLAIN QUERY PLAN {statement}", bindings)]
        for statement in seen
    ]


def test_no_selection_reads_a_whole_table(database: StateDatabase) -> None:
    selections = [
        (high, Selection(at=at, order=order, limit=3, keys_only=True, min_mod=1, limit_before_sort=early))
        for high in (b"z", None)
        for at in (None, 7)
        for order in Column
        if order is not Column.LEASE
        for early in (False, True)
    ]
    for plan in plans(database, selections):
        scans = [step for step in plan if step.startswith("SCAN") and "CONSTANT" not in step]
        assert all("subquery" in step for step in scans), plan


@pytest.mark.parametrize("at", [None, 7])
def test_a_page_in_the_order_of_keys_is_not_sorted(database: StateDatabase, at: int | None) -> None:
    page, _ = plans(database, [(None, Selection(at=at, limit=3))])
    assert not [step for step in page if "TEMP B-TREE" in step], page


def test_a_revision_row_is_never_written_twice(database: StateDatabase) -> None:
    tables = KeyTables(database.connection)
    tables.insert_revisions([(pack(2), 0, 0, b"")])
    with pytest.raises(StatementError):
        tables.insert_revisions([(pack(2), 0, 0, b"")])


def test_a_key_is_current_once(database: StateDatabase) -> None:
    tables = KeyTables(database.connection)
    tables.insert_current([(b"a", pack(2), 2, 1, 0)])
    with pytest.raises(StatementError):
        tables.insert_current([(b"a", pack(3), 3, 1, 0)])


def test_the_tables_are_strict(database: StateDatabase) -> None:
    with pytest.raises(StatementError):
        KeyTables(database.connection).insert_current([("text", pack(2), 2, 1, 0)])  # type: ignore[list-item]


def test_one_key_by_the_two_hot_statements(database: StateDatabase) -> None:
    tables = KeyTables(database.connection)
    for number, (key, value) in enumerate([(b"a", b"1"), (b"b", b""), (b"c", b"3")], 2):
        tables.put((pack(number), 0, len(value), b"head" + value), key, number, 1, 0)
    assert tables.current(b"b") == (pack(3), 3, 1, 0)
    assert tables.latest(b"c") == tables.at(pack(4)) == b"head3"
    assert tables.latest(b"d") is None


@pytest.mark.parametrize(
    ("low", "high", "column", "sign", "wanted", "expected"),
    [
        (b"a", b"d", Column.VALUE, ">", b"0", (True, True)),
        (b"a", b"d", Column.VALUE, "<", b"3", (True, False)),
        (b"a", b"c", Column.VALUE, "<", b"3", (True, True)),
        (b"a", None, Column.VERSION, "=", 1, (True, True)),
        (b"a", None, Column.MOD, ">", 2, (True, False)),
        (b"b", None, Column.MOD, ">", 2, (True, True)),
        (b"a", None, Column.CREATE, "<>", 4, (True, False)),
        (b"a", None, Column.LEASE, "=", 0, (True, True)),
        (b"x", None, Column.VALUE, "=", b"1", (False, True)),
        (b"d", b"a", Column.VALUE, "=", b"1", (False, True)),
    ],
)
def test_compare(
    database: StateDatabase,
    low: bytes,
    high: bytes | None,
    column: Column,
    sign: str,
    wanted: int | bytes,
    expected: tuple[bool, bool],
) -> None:
    tables = KeyTables(database.connection)
    for number, (key, value) in enumerate([(b"a", b"1"), (b"b", b"2"), (b"c", b"3")], 2):
        tables.put((pack(number), 0, len(value), b"head" + value), key, number, 1, 0)
    assert tables.compare(low, high, column, sign, wanted) == expected


def test_members_with_ids_of_64_bits(database: StateDatabase) -> None:
    facts = FactTables(database.connection)
    members = [
        MemberRow(1, "one", ("http://a",), (), True),
        MemberRow(2**64 - 1, "größte", ("http://b", "http://c"), ("http://d",), False),
    ]
    for member in reversed(members):
        facts.set_member(member)
    assert facts.members() == members
    facts.remove_member(2**64 - 1)
    assert facts.members() == members[:1]
    assert facts.removed_members() == [2**64 - 1]


def test_meta_of_a_new_database(database: StateDatabase) -> None:
    facts = FactTables(database.connection)
    facts.set_applied(10, 2, 5)
    facts.set_compaction(4, 3, pack(3, 1))
    facts.set_cluster_version("3.6.0")
    meta = facts.meta()
    assert (meta.applied_index, meta.applied_term, meta.revision) == (10, 2, 5)
    assert (meta.compacted_revision, meta.finished_compaction, meta.compaction_position) == (
        4,
        3,
        pack(3, 1),
    )
    assert meta.cluster_version == "3.6.0"
