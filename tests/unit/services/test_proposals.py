"""Requests on their way through the log: one entry a turn, each waiter answered once."""

from etcd_server.api.proto import command_pb2, rpc_pb2
from etcd_server.services import proposals as p


def take(proposals: p.Proposals, now: float) -> list[tuple[int, bytes]]:
    """What raft is given, as if it took all of it in term 1."""
    proposals.seal(now)
    taken = []
    while (sealed := proposals.next_sealed()) is not None:
        taken.append((sealed.proposal_id, sealed.data))
        proposals.taken(term=1)
    return taken


def parse(data: bytes) -> command_pb2.Batch:
    return command_pb2.Batch.FromString(data)


def test_a_turn_is_one_entry_that_parses_as_a_batch() -> None:
    proposals = p.Proposals(first_id=7 << 32, timeout_s=7.0)
    put = rpc_pb2.PutRequest(key=b"k", value=b"v" * 300)
    grant = rpc_pb2.LeaseGrantRequest(ID=5, TTL=10)
    proposals.add(p.PUT, put.SerializeToString(), 1)
    proposals.add(p.LEASE_GRANT, grant.SerializeToString(), 2)
    [(proposal_id, data)] = take(proposals, 0.0)
    batch = parse(data)
    assert batch.proposal_id == proposal_id == 7 << 32
    assert [command.WhichOneof("kind") for command in batch.commands] == ["put", "lease_grant"]
    assert batch.commands[0].put == put
    assert batch.commands[1].lease_grant == grant
    assert list(proposals.pop(proposal_id)) == [1, 2]
    assert list(proposals.pop(proposal_id)) == []


def test_every_tag_is_the_field_of_its_command() -> None:
    tags = {
        p.PUT: "put", p.DELETE_RANGE: "delete_range", p.TXN: "txn", p.COMPACTION: "compaction",
        p.LEASE_GRANT: "lease_grant", p.LEASE_REVOKE: "lease_revoke", p.ALARM: "alarm",
        p.MEMBER_ATTRIBUTES: "member_attributes", p.CLUSTER_VERSION: "cluster_version",
    }  # fmt: skip
    proposals = p.Proposals(0, 1.0)
    for tag in tags:
        proposals.add(tag, b"", None)
    [(_, data)] = take(proposals, 0.0)
    assert [command.WhichOneof("kind") for command in parse(data).commands] == list(tags.values())


def test_an_entry_never_grows_far_past_its_limit() -> None:
    proposals = p.Proposals(0, 1.0)
    value = b"x" * (p.MAX_ENTRY_BYTES // 4)
    for call_id in range(10):
        proposals.add(p.PUT, rpc_pb2.PutRequest(key=b"k", value=value).SerializeToString(), call_id)
    entries = take(proposals, 0.0)
    assert len(entries) == 3
    assert [waiter for entry_id, _ in entries for waiter in proposals.pop(entry_id)] == list(range(10))


def test_those_who_wait_too_long_are_given_back_once() -> None:
    proposals = p.Proposals(0, timeout_s=7.0)
    proposals.add(p.PUT, b"", 1)
    take(proposals, 0.0)
    proposals.add(p.PUT, b"", 2)
    [(second, _)] = take(proposals, 5.0)
    assert list(proposals.expired(6.9)) == []
    assert list(proposals.expired(7.0)) == [(0.0, 1)]
    assert list(proposals.expired(7.0)) == []
    assert list(proposals.pop(second)) == [2]
    assert list(proposals.drop_all()) == []


def test_nothing_gathered_is_no_entry() -> None:
    assert take(p.Proposals(0, 1.0), 0.0) == []


def test_what_another_member_has_refused_is_proposed_again_by_another_number() -> None:
    proposals = p.Proposals(first_id=5, timeout_s=7.0)
    proposals.add(p.PUT, rpc_pb2.PutRequest(key=b"k").SerializeToString(), 1)
    [(first, data)] = take(proposals, 0.0)
    proposals.turned_away(first)
    proposals.turned_away(first)
    assert take(proposals, 0.1) == []
    assert list(proposals.lost(term=9)) == []
    proposals.retry()
    [(second, again)] = take(proposals, 0.2)
    assert second != first
    assert parse(again).proposal_id == second
    assert parse(again).commands == parse(data).commands
    proposals.turned_away(first)
    proposals.retry()
    assert take(proposals, 0.3) == []
    assert list(proposals.pop(first)) == []
    assert list(proposals.lost(term=9)) == [1]


def test_a_refused_proposal_keeps_its_time_limit() -> None:
    proposals = p.Proposals(first_id=5, timeout_s=7.0)
    for call_id, now in ((1, 0.0), (2, 1.0)):
        proposals.add(p.PUT, b"", call_id)
        [(proposal_id, _)] = take(proposals, now)
        if call_id == 1:
            proposals.turned_away(proposal_id)
            proposals.retry()
            take(proposals, now)
    assert list(proposals.expired(7.5)) == [(0.0, 1)]
    assert list(proposals.expired(8.0)) == [(1.0, 2)]


def test_what_the_leader_proposes_of_itself_has_an_entry_of_its_own() -> None:
    proposals = p.Proposals(0, 1.0)
    proposals.add_own(p.LEASE_REVOKE, b"", None)
    proposals.add(p.PUT, b"", 1)
    proposals.seal(0.0)
    first = proposals.next_sealed()
    assert first is not None and not first.is_own
    proposals.taken(term=1)
    second = proposals.next_sealed()
    assert second is not None and second.is_own
    assert list(proposals.refused()) == [None]
    assert proposals.next_sealed() is None


def test_no_more_is_kept_than_memory_allows() -> None:
    proposals = p.Proposals(0, 1.0)
    entries = p.MAX_KEPT_BYTES // p.MAX_ENTRY_BYTES + 4
    for call_id in range(entries):
        proposals.add(p.PUT, b"x" * p.MAX_ENTRY_BYTES, call_id)
    proposals.seal(0.0)
    refused = list(proposals.overflow())
    assert refused == list(range(entries - 1, entries - 1 - len(refused), -1))
    assert 4 <= len(refused) <= 6
    assert list(proposals.overflow()) == []
