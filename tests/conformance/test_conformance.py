"""The same requests to etcd 3.4, etcd 3.5 and etcd-py: over gRPC, over the JSON gateway, through etcdctl."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import grpc
import pytest

from etcd_server.api.methods import METHODS, Kind
from etcd_server.api.proto import rpc_pb2
from tests.conformance import cases_gateway
from tests.conformance.cases import CASES, RANDOM_PROGRAMS, transcript
from tests.conformance.differences import BETWEEN_ETCDS, Difference, expected_of_ours, unexplained
from tests.conformance.differences import OURS as OUR_DIFFERENCES
from tests.conformance.lab import ALL_CASES, ETCDS, OURS, Lab
from tests.conformance.target import Exchange
from tests.servers import available_servers

# What etcd-py has of the API; everything else must answer UNIMPLEMENTED.
IMPLEMENTED = {
    "etcdserverpb.KV": {"Range", "Put", "DeleteRange", "Txn", "Compact"},
    "etcdserverpb.Watch": {"Watch"},
    "etcdserverpb.Lease": {
        "LeaseGrant",
        "LeaseRevoke",
        "LeaseKeepAlive",
        "LeaseTimeToLive",
        "LeaseLeases",
    },
    "etcdserverpb.Cluster": {"MemberAdd", "MemberRemove", "MemberUpdate", "MemberList", "MemberPromote"},
    "etcdserverpb.Maintenance": {"Status", "Alarm", "MoveLeader", "Hash", "HashKV"},
    "grpc.health.v1.Health": {"Check", "Watch"},
}
PROGRAM_LIMIT_S = 110


@pytest.mark.parametrize("name", ALL_CASES)
def test_the_two_etcds_agree(lab: Lab, name: str) -> None:
    problems = unexplained(BETWEEN_ETCDS, name, *(lab.seen(kind, name) for kind in ETCDS))
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("name", ALL_CASES)
def test_etcd_py_answers_like_etcd(lab: Lab, name: str) -> None:
    ours = lab.seen(OURS, name)
    expected = expected_of_ours(name, *(lab.seen(kind, name) for kind in ETCDS))
    problems = unexplained(OUR_DIFFERENCES, name, expected, ours)
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("entry", BETWEEN_ETCDS)
def test_a_known_difference_of_the_etcds_is_still_one(lab: Lab, entry: Difference) -> None:
    assert any(described(entry, name, *(lab.seen(kind, name) for kind in ETCDS)) for name in named(entry))


@pytest.mark.parametrize("entry", OUR_DIFFERENCES)
def test_a_known_difference_of_etcd_py_is_still_one(lab: Lab, entry: Difference) -> None:
    def compared(name: str) -> bool:
        expected = expected_of_ours(name, *(lab.seen(kind, name) for kind in ETCDS))
        return described(entry, name, expected, lab.seen(OURS, name))

    assert any(map(compared, named(entry)))


def named(entry: Difference) -> list[str]:
    return [name for name in ALL_CASES if name.startswith(entry.case)]


def described(entry: Difference, name: str, left: list[Exchange], right: list[Exchange]) -> bool:
    """Some exchange that `entry` covers does differ."""
    pairs = zip(left, right, strict=False)
    return any(one != other and entry.covers(name, one) for one, other in pairs)


def test_the_cases_cover_what_they_should(lab: Lab) -> None:
    """Many requests, every method that has cases, and every error text that a client can bring about."""
    exchanges = [exchange for name in CASES for exchange in lab.seen("3.5", name)]
    assert len(exchanges) >= 500
    methods = Counter(exchange.request.split()[0] for exchange in exchanges)
    for service, names in IMPLEMENTED.items():
        for name in names:
            short = f"{service}/{name}".removeprefix("etcdserverpb.")
            assert methods[short] or methods[short.removeprefix("grpc.health.v1.")], short
    answers = "\n".join(exchange.answer for exchange in exchanges)
    for text in (
        "key is not provided",
        "key not found",
        "value is provided",
        "lease is provided",
        "too many operations in txn request",
        "duplicate key given in txn request",
        "request is too large",
        "mvcc: required revision has been compacted",
        "mvcc: required revision is a future revision",
        "too large lease TTL",
        "mvcc: database space exceeded",
        "requested lease not found",
        "lease already exists",
        "corrupt cluster",
        "mvcc: watcher range is empty",
    ):
        assert text in answers, text


@pytest.mark.timeout(PROGRAM_LIMIT_S + 10)
def test_random_programs(lab: Lab) -> None:
    """200 generated programs of 25 requests, on the servers side by side."""
    kinds = [*ETCDS, OURS] if OURS in available_servers() else list(ETCDS)
    results: dict[str, dict[str, list[Exchange]]] = {kind: {} for kind in kinds}
    targets = {kind: lab.target(kind) for kind in kinds}

    def run(kind: str) -> None:
        for name, case in RANDOM_PROGRAMS.items():
            results[kind][name] = transcript(targets[kind], case)

    threads = [threading.Thread(target=run, args=(kind,), daemon=True) for kind in kinds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PROGRAM_LIMIT_S)
        assert not thread.is_alive()
    problems = []
    for kind in kinds:
        for name in RANDOM_PROGRAMS:
            found = unexplained((), name, results["3.5"][name], results[kind][name])
            problems += [f"{kind} {name} {problem}" for problem in found]
    assert not problems, "\n".join(problems[:5])


def test_what_etcd_py_does_not_have_is_unimplemented(lab: Lab) -> None:
    channel = lab.target(OURS).channel
    for rpc in METHODS.values():
        if rpc.method in IMPLEMENTED.get(rpc.service, set()):
            continue
        shape: Any = {
            Kind.UNARY: channel.unary_unary,
            Kind.SERVER_STREAM: channel.unary_stream,
            Kind.BIDI: channel.stream_stream,
        }[rpc.kind]
        call = shape(rpc.path, request_serializer=bytes, response_deserializer=bytes)
        payload = iter([b""]) if rpc.kind is Kind.BIDI else b""
        with pytest.raises(grpc.RpcError) as caught:
            answer = call(payload, timeout=10)
            if rpc.kind is not Kind.UNARY:
                next(answer)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED, rpc.path


def test_what_kills_etcd_does_not_kill_etcd_py(lab: Lab) -> None:
    """etcd 3.4 ends at an alarm whose every field is zero: it cannot be stored under an empty key."""
    target = lab.target(OURS)
    target.begin()
    target.call("Maintenance/Alarm", rpc_pb2.AlarmRequest(action=rpc_pb2.AlarmRequest.ACTIVATE))
    for order, sort in ((9, 1), (1, 9), (-1, 0), (0, -1)):
        request = rpc_pb2.RangeRequest(key=b"a", range_end=b"b", sort_order=order, sort_target=sort)  # type: ignore[arg-type]
        target.call("KV/Range", request)
        assert target.transcript[-1].answer == "INVALID_ARGUMENT: etcdserver: invalid sort option"
    assert target.put(b"alive") is not None


def test_the_gateway_has_enough_requests(lab: Lab) -> None:
    assert sum(len(lab.seen("3.5", name)) for name in cases_gateway.CASES) >= 60
