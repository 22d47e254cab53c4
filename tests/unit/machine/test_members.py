"""The members: ids as etcd computes them, and which changes are refused."""

import pytest

from etcd_server.api import errors
from etcd_server.api.proto import command_pb2, rpc_pb2
from etcd_server.machine.members import cluster_id, member_id
from tests.unit.machine.machines import Lab

Kind = command_pb2.ConfChange


def change(lab: Lab, kind: Kind.Kind.ValueType, number: int, *peer_urls: str, **fields: object) -> None:
    """Apply a change of the membership; raises what it was refused with."""
    machine = lab.machine
    member = rpc_pb2.Member(ID=number, peerURLs=peer_urls, **fields)  # type: ignore[arg-type]
    outcome = machine.apply_conf_change(machine.applied_index + 1, 1, Kind(kind=kind, member=member))
    if isinstance(outcome, errors.EtcdError):
        raise outcome
    assert outcome == (machine.revision, b"")


@pytest.fixture
def two(lab: Lab) -> Lab:
    change(lab, Kind.ADD_VOTER, 2**64 - 1, "http://b:2380", name="b")
    change(lab, Kind.ADD_VOTER, 7, "http://a:2380", "http://a:2381")
    return lab


def test_ids_are_those_of_etcd() -> None:
    # What etcd 3.4.23 and 3.5.1 print for their default configuration.
    only = member_id(["http://localhost:2380"], "etcd-cluster")
    assert f"{only:x}" == "8e9e05c52164694d"
    assert f"{cluster_id([only]):x}" == "cdf818194e3a8c32"


def test_ids_do_not_depend_on_the_order() -> None:
    urls = ["http://b:2380", "http://a:2380"]
    assert member_id(urls, "t") == member_id(urls[::-1], "t")
    assert member_id(urls, "t") != member_id(urls, "t", now_s=1)
    assert cluster_id([2, 1]) == cluster_id([1, 2])


def test_members_in_the_order_of_their_ids(two: Lab) -> None:
    assert two.machine.members.all() == [
        rpc_pb2.Member(ID=7, peerURLs=["http://a:2380", "http://a:2381"]),
        rpc_pb2.Member(ID=2**64 - 1, name="b", peerURLs=["http://b:2380"]),
    ]
    assert two.machine.members.get(7) == two.machine.members.all()[0]
    assert two.machine.members.get(8) is None


def test_attributes(two: Lab) -> None:
    attributes = command_pb2.MemberAttributes(member_id=7, name="a", client_urls=["http://a:2379"])
    two.do(member_attributes=attributes)
    member = two.machine.members.get(7)
    assert member is not None
    assert (member.name, list(member.clientURLs)) == ("a", ["http://a:2379"])
    with pytest.raises(errors.MemberNotFound):
        two.do(member_attributes=command_pb2.MemberAttributes(member_id=8))


def test_learner_and_promotion(two: Lab) -> None:
    change(two, Kind.ADD_LEARNER, 9, "http://c:2380")
    assert two.machine.members.get(9).isLearner  # type: ignore[union-attr]
    with pytest.raises(errors.TooManyLearners):
        change(two, Kind.ADD_LEARNER, 10, "http://d:2380")
    change(two, Kind.PROMOTE, 9)
    assert not two.machine.members.get(9).isLearner  # type: ignore[union-attr]
    with pytest.raises(errors.MemberNotLearner):
        change(two, Kind.PROMOTE, 9)


def test_a_change_says_how_many_learners_there_may_be(two: Lab) -> None:
    def add(number: int, limit: int) -> object:
        member = rpc_pb2.Member(ID=number, peerURLs=[f"http://{number}:2380"])
        adding = Kind(kind=Kind.ADD_LEARNER, member=member, max_learners=limit)
        return two.machine.apply_conf_change(two.machine.applied_index + 1, 1, adding)

    assert isinstance(add(9, 0), errors.TooManyLearners)
    assert add(9, 2) == add(10, 2) == (1, b"")
    assert isinstance(add(11, 2), errors.TooManyLearners)


def test_update_changes_the_peer_urls_only(two: Lab) -> None:
    change(two, Kind.ADD_LEARNER, 9, "http://c:2380")
    change(two, Kind.UPDATE, 9, "http://c:9999", name="ignored")
    assert two.machine.members.get(9) == rpc_pb2.Member(ID=9, peerURLs=["http://c:9999"], isLearner=True)
    change(two, Kind.UPDATE, 9, "http://c:9999")


def test_a_removed_member_never_returns(two: Lab) -> None:
    change(two, Kind.REMOVE, 7)
    assert two.machine.members.is_removed(7)
    two.machine.commit()
    two.crash()
    assert [member.ID for member in two.machine.members.all()] == [2**64 - 1]
    assert two.machine.members.is_removed(7)
    for kind in (Kind.ADD_VOTER, Kind.REMOVE, Kind.UPDATE, Kind.PROMOTE):
        with pytest.raises(errors.MemberNotFound):
            change(two, kind, 7, "http://new:2380")


@pytest.mark.parametrize(
    ("kind", "number", "url", "error"),
    [
        (Kind.ADD_VOTER, 7, "http://c:2380", errors.MemberExists),
        (Kind.ADD_LEARNER, 9, "http://a:2381", errors.PeerURLExists),
        (Kind.UPDATE, 7, "http://b:2380", errors.PeerURLExists),
        (Kind.UPDATE, 9, "http://c:2380", errors.MemberNotFound),
        (Kind.REMOVE, 9, "", errors.MemberNotFound),
        (Kind.PROMOTE, 9, "", errors.MemberNotFound),
    ],
)
def test_refused_changes_change_nothing(
    two: Lab, kind: Kind.Kind.ValueType, number: int, url: str, error: type[errors.EtcdError]
) -> None:
    before = two.machine.members.all()
    with pytest.raises(error):
        change(two, kind, number, url)
    assert two.machine.members.all() == before
    assert two.machine.applied_index == 3


def test_a_change_of_an_unknown_kind_ends_the_member(two: Lab) -> None:
    with pytest.raises(errors.Internal, match="unknown kind: 9"):
        change(two, 9, 7)  # type: ignore[arg-type]
    assert two.machine.applied_index == 2


def test_a_change_is_applied_once(two: Lab) -> None:
    again = Kind(kind=Kind.REMOVE, member=rpc_pb2.Member(ID=7))
    assert two.machine.apply_conf_change(2, 1, again) is None
    assert two.machine.members.get(7) is not None
