"""The JSON gateway answers as etcd 3.5.1 does: statuses, codes and bodies below were recorded from it.

What is said about wrong JSON is worded differently (its texts are those of Go's decoder), and some requests
are understood that 3.5.1 refuses and 3.6 takes: MORE names them.
"""

import json

import pytest

from etcd_server.api import errors
from etcd_server.api.errors import EtcdError
from etcd_server.api.methods import GATEWAY_PATHS, METHODS
from etcd_server.api.proto import kv_pb2, rpc_pb2
from etcd_server.transport import gateway
from etcd_server.transport.answers import HttpAnswer
from etcd_server.transport.gateway import Call

MAX = 2_097_152
RANGE = METHODS["/etcdserverpb.KV/Range"]
HEADER = rpc_pb2.ResponseHeader(
    cluster_id=15118495548433857066, member_id=13668033151171901709, revision=2, raft_term=2
)
HEADER_JSON = (
    b'"header":{"cluster_id":"15118495548433857066","member_id":"13668033151171901709",'
    b'"revision":"2","raft_term":"2"}'
)


def post(target: str, body: bytes, *headers: tuple[str, str]) -> Call:
    called = gateway.decode("POST", target, headers, body, MAX)
    assert isinstance(called, Call), called
    return called


def refused(target: str, body: bytes, *headers: tuple[str, str], method: str = "POST") -> HttpAnswer:
    answer = gateway.decode(method, target, headers, body, MAX)
    assert isinstance(answer, HttpAnswer), answer
    return answer


def range_request(body: bytes) -> rpc_pb2.RangeRequest:
    (request,) = post("/v3/kv/range", body).requests
    assert isinstance(request, rpc_pb2.RangeRequest)
    return request


@pytest.mark.parametrize("path", GATEWAY_PATHS)
def test_every_path_of_the_table_leads_to_its_rpc(path: str) -> None:
    for target in (path, path + "?limit=1", path.replace("/v3/", "/v3beta/", 1)):
        assert gateway.serves(target)
        called = post(target, b"{}")
        assert called.rpc is GATEWAY_PATHS[path]
        assert called.requests == (called.rpc.request(),)


def test_a_percent_sign_in_the_path_is_decoded() -> None:
    assert post("/v3/kv/%72ange", b"{}").rpc is RANGE


@pytest.mark.parametrize("target", ["/v3alpha/kv/range", "/v3", "/health", "/v2/keys", "/", "/v3betas/kv"])
def test_other_paths_are_not_the_gateways(target: str) -> None:
    assert not gateway.serves(target)


@pytest.mark.parametrize("target", ["/v3/nosuch", "/v3/", "/v3/kv/range/", "/v3/kv/range:a", "/v3//kv/put"])
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_unknown_paths(method: str, target: str) -> None:
    answer = refused(target, b"{}", method=method)
    assert (answer.status, answer.body) == (404, b"Not Found\n")
    assert ("Content-Type", "text/plain; charset=utf-8") in answer.headers


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("target", ["/v3/kv/range", "/v3/watch"])
def test_other_methods_than_post(method: str, target: str) -> None:
    answer = refused(target, b"", method=method)
    assert (answer.status, answer.body) == (405, b"Method Not Allowed\n")
    assert ("Content-Type", "text/plain; charset=utf-8") in answer.headers


# --- requests ---------------------------------------------------------------------------------------------

ACCEPTED = [
    (b'{"key":"Zm9v"}', {"key": b"foo"}),
    (b'{"key":"Zm9v"} garbage', {"key": b"foo"}),
    (b'{"key":"Zm9v"}}', {"key": b"foo"}),
    (b'{"key":"Zm9v"}{"key":"YQ=="}', {"key": b"foo"}),
    (b'{"key":"\\u005am9v"}', {"key": b"foo"}),
    (b'{"key":"Zm\\n9v"}', {"key": b"foo"}),
    (b'{"key":"/+8="}', {"key": b"\xff\xef"}),
    (b'{"key":"Zm9v","key":"YQ=="}', {"key": b"a"}),
    (b'{"key":"Zm9v","limit":"1"}', {"key": b"foo", "limit": 1}),
    (b'{"key":"Zm9v","limit":" 1"}', {"key": b"foo", "limit": 1}),
    (b'{"key":"Zm9v","limit":"-1"}', {"key": b"foo", "limit": -1}),
    (b'{"key":"Zm9v","limit":null}', {"key": b"foo"}),
    (b'{"key":"Zm9v","sort_order":"DESCEND"}', {"key": b"foo", "sort_order": 2}),
    (b'{"key":"Zm9v","sort_order":2}', {"key": b"foo", "sort_order": 2}),
    (b'{"key":"Zm9v","sort_order":99}', {"key": b"foo", "sort_order": 99}),
    (b'{"key":"Zm9v","sort_order":null}', {"key": b"foo"}),
    (b'{"key":"Zm9v","sortOrder":"DESCEND"}', {"key": b"foo", "sort_order": 2}),
    (b'{"key":"Zm9v","nosuch":{"a":[1]}}', {"key": b"foo"}),
    (b'{"KEY":"Zm9v"}', {}),
    (b'{"key":null}', {}),
    (b"{}", {}),
    (b"null", {}),
    (b"  ", {}),
    (b"", {}),
]


@pytest.mark.parametrize(("body", "fields"), ACCEPTED)
def test_what_etcd_accepts(body: bytes, fields: dict[str, bytes | int]) -> None:
    assert range_request(body) == rpc_pb2.RangeRequest(**fields)  # type: ignore[arg-type]


MORE = [
    (b'{"key":"_-8="}', {"key": b"\xff\xef"}),
    (b'{"key":"_-8"}', {"key": b"\xff\xef"}),
    (b'{"key":"Zg"}', {"key": b"f"}),
    (b'{"key":"Zm9v","limit":1.0}', {"key": b"foo", "limit": 1}),
    (b'{"key":"Zm9v","limit":1e2}', {"key": b"foo", "limit": 100}),
]


@pytest.mark.parametrize(("body", "fields"), MORE)
def test_what_later_releases_accept(body: bytes, fields: dict[str, bytes | int]) -> None:
    assert range_request(body) == rpc_pb2.RangeRequest(**fields)  # type: ignore[arg-type]


WRONG = [
    (b"[]", "expected an object, got an array"),
    (b'"x"', "expected an object, got a string"),
    (b"1", "expected an object, got a number"),
    (b'{"key"', "not JSON at line 1, column 7: Expecting ':' delimiter"),
    (b'{"key":}', "not JSON at line 1, column 8: Expecting value"),
    (b"{key:1}", "not JSON at line 1, column 2: Expecting property name enclosed in double quotes"),
    (b"key=Zm9v", "not JSON at line 1, column 1: Expecting value"),
    (b"\xff\xfe", "byte 0 is not UTF-8"),
    (b'{"key":1}', "key: expected a base64 string, got a number"),
    (b'{"key":{}}', "key: expected a base64 string, got an object"),
    (b'{"key":["Zg=="]}', "key: expected a base64 string, got an array"),
    (b'{"key":"***"}', "key: expected a base64 string, got '***'"),
    (b'{"key":"Zg="}', "key: expected a base64 string, got 'Zg='"),
    (b'{"key":"Zg==Zg=="}', "key: expected a base64 string, got 'Zg==Zg=='"),
    (b'{"key":"Z"}', "key: expected a base64 string, got 'Z'"),
    (b'{"limit":"x"}', "limit: expected an integer, got 'x'"),
    (b'{"limit":""}', "limit: expected an integer, got ''"),
    (b'{"limit":"0x10"}', "limit: expected an integer, got '0x10'"),
    (b'{"limit":"+1"}', "limit: expected an integer, got '+1'"),
    (b'{"limit":"1_0"}', "limit: expected an integer, got '1_0'"),
    (b'{"limit":1.5}', "limit: expected an integer, got 1.5"),
    (b'{"limit":1e999}', "limit: expected an integer, got inf"),
    (b'{"limit":NaN}', "NaN is no JSON value"),
    (b'{"limit":true}', "limit: expected an integer, got a boolean"),
    (
        b'{"limit":99999999999999999999}',
        "limit: expected an integer from -9223372036854775808 to 9223372036854775807,"
        " got 99999999999999999999",
    ),
    (b'{"limit":' + b"9" * 5000 + b"}", "a number has too many digits"),
    (b'{"serializable":"true"}', "serializable: expected true or false, got a string"),
    (b'{"serializable":1}', "serializable: expected true or false, got a number"),
    (b'{"sort_order":"2"}', "sort_order: expected one of NONE, ASCEND, DESCEND, got '2'"),
    (b'{"sort_order":"descend"}', "sort_order: expected one of NONE, ASCEND, DESCEND, got 'descend'"),
    (b"[" * 100_000, "nested too deeply"),
]


@pytest.mark.parametrize(("body", "text"), WRONG, ids=lambda part: str(part)[:40])
def test_what_etcd_refuses(body: bytes, text: str) -> None:
    answer = refused("/v3/kv/range", body)
    assert answer.status == 400
    said = f"request body: {text}"
    assert json.loads(answer.body) == {"error": said, "code": 3, "message": said}


def test_an_error_inside_names_the_whole_way_to_it() -> None:
    body = b'{"success":[{},{"request_put":{"key":"Zm9v","lease":{}}}]}'
    told = json.loads(refused("/v3/kv/txn", body).body)
    assert told["error"] == "request body: success[1].request_put.lease: expected an integer, got an object"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"success":{}}', "success: expected an array, got an object"),
        (b'{"compare":[null]}', "compare[0]: expected an object, got null"),
    ],
)
def test_arrays(body: bytes, text: str) -> None:
    assert json.loads(refused("/v3/kv/txn", body).body)["message"] == f"request body: {text}"


def test_of_two_operations_in_one_the_last_counts() -> None:
    (request,) = post(
        "/v3/kv/txn", b'{"success":[{"requestRange":{"key":"Zm9v"},"request_put":{"key":"YQ=="}}]}'
    ).requests
    assert request == rpc_pb2.TxnRequest(
        success=[rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=b"a"))]
    )


def test_an_empty_operation_is_still_that_operation() -> None:
    (request,) = post("/v3/kv/txn", b'{"success":[{"request_range":{}},{"request_range":null}]}').requests
    assert isinstance(request, rpc_pb2.TxnRequest)
    assert [op.WhichOneof("request") for op in request.success] == ["request_range", None]


def test_transactions_nested_beyond_what_protobuf_carries() -> None:
    body = b"{}"
    for _ in range(60):
        body = b'{"success":[{"request_txn":' + body + b"}]}"
    told = json.loads(refused("/v3/kv/txn", body).body)
    assert told["message"] == "request body: nested too deeply"


def test_half_a_surrogate_pair() -> None:
    told = json.loads(refused("/v3/auth/user/add", b'{"name":"\\ud800"}').body)
    assert told["message"] == "request body: name: half of a surrogate pair stands alone"


def test_names_that_are_written_in_capitals() -> None:
    (request,) = post("/v3/lease/grant", b'{"TTL":"60","ID":7}').requests
    assert request == rpc_pb2.LeaseGrantRequest(TTL=60, ID=7)


def test_a_message_larger_than_grpc_would_carry() -> None:
    body = b'{"key":"YQ==","value":"' + b"A" * 4_200_000 + b'"}'
    answer = refused("/v3/kv/put", body)
    text = "grpc: received message larger than max (3150008 vs. 2097152)"
    assert answer.status == 429
    assert json.loads(answer.body) == {"error": text, "code": 8, "message": text}


# --- streams of requests ----------------------------------------------------------------------------------


@pytest.mark.parametrize("between", [b"", b"\n", b" \r\n\t"])
def test_a_streaming_body_holds_one_message_after_another(between: bytes) -> None:
    body = between.join([b'{"ID":123}', b'{"ID":"999"}', b"{}"])
    requests = post("/v3/lease/keepalive", body).requests
    assert requests == tuple(rpc_pb2.LeaseKeepAliveRequest(ID=number) for number in (123, 999, 0))


def test_a_streaming_body_may_be_empty() -> None:
    assert post("/v3/watch", b"").requests == ()


def test_a_watch() -> None:
    (request,) = post(
        "/v3/watch", b'{"create_request":{"key":"Zm9v","start_revision":"1","filters":["NOPUT",1]}}'
    ).requests
    create = rpc_pb2.WatchCreateRequest(key=b"foo", start_revision=1)
    create.filters.extend([rpc_pb2.WatchCreateRequest.NOPUT, rpc_pb2.WatchCreateRequest.NODELETE])
    assert request == rpc_pb2.WatchRequest(create_request=create)


def test_a_wrong_first_message_of_a_stream_is_etcds_status_500() -> None:
    answer = refused("/v3/watch", b"{bad")
    assert answer.status == 500
    assert json.loads(answer.body)["code"] == 2


def test_what_comes_before_a_wrong_message_of_a_stream_counts() -> None:
    requests = post("/v3/lease/keepalive", b'{"ID":123}\n{"ID":"x"}\n{"ID":5}').requests
    assert requests == (rpc_pb2.LeaseKeepAliveRequest(ID=123),)


def test_a_body_of_very_many_messages_is_read_in_one_go() -> None:
    assert len(post("/v3/lease/keepalive", b"{}" * 100_000).requests) == 100_000


# --- metadata ---------------------------------------------------------------------------------------------


def test_headers_that_become_metadata() -> None:
    called = post(
        "/v3/kv/range",
        b"{}",
        ("host", "x"),
        ("authorization", "token.1"),
        ("grpc-metadata-hasleader", "true"),
        ("content-type", "text/plain"),
    )
    assert called.metadata == {"authorization": "token.1", "hasleader": "true"}
    assert called.timeout_s is None


@pytest.mark.parametrize(
    ("value", "timeout_s"),
    [("5S", 5.0), ("300m", 0.3), ("1n", 1e-9), ("2H", 7200.0), ("1M", 60.0), ("7u", 7e-6)],
)
def test_a_timeout(value: str, timeout_s: float) -> None:
    assert post("/v3/kv/range", b"{}", ("grpc-timeout", value)).timeout_s == pytest.approx(timeout_s)


@pytest.mark.parametrize("value", ["bad", "5", "S", "-5S", "5s"])
def test_a_wrong_timeout(value: str) -> None:
    answer = refused("/v3/kv/range", b"{}", ("grpc-timeout", value))
    text = f"invalid grpc-timeout: {value}"
    assert (answer.status, json.loads(answer.body)) == (400, {"error": text, "code": 3, "message": text})


# --- answers ----------------------------------------------------------------------------------------------


def test_an_answer_is_etcds_byte_for_byte() -> None:
    kv = kv_pb2.KeyValue(key=b"foo", create_revision=2, mod_revision=2, version=1, value=b"bar")
    response = rpc_pb2.RangeResponse(header=HEADER, kvs=[kv], count=1)
    answer = gateway.answer(RANGE, response.SerializeToString())
    assert answer.status == 200
    assert answer.headers == [
        ("Content-Type", "application/json"),
        ("Grpc-Metadata-Content-Type", "application/grpc"),
    ]
    assert answer.body == (
        b"{" + HEADER_JSON + b',"kvs":[{"key":"Zm9v","create_revision":"2","mod_revision":"2",'
        b'"version":"1","value":"YmFy"}],"count":"1"}'
    )


def test_an_answer_in_parts_is_merged() -> None:
    # The engine joins a serialised header and a serialised body; merged, they are one message.
    parts = rpc_pb2.RangeResponse(count=1).SerializeToString()
    parts += rpc_pb2.RangeResponse(header=HEADER).SerializeToString()
    assert gateway.answer(RANGE, parts).body == b"{" + HEADER_JSON + b',"count":"1"}'


def test_kinds_of_values_in_answers() -> None:
    response = rpc_pb2.AlarmResponse(
        header=rpc_pb2.ResponseHeader(),
        alarms=[rpc_pb2.AlarmMember(memberID=2**64 - 1, alarm=rpc_pb2.CORRUPT)],
    )
    alarm = METHODS["/etcdserverpb.Maintenance/Alarm"]
    assert gateway.answer(alarm, response.SerializeToString()).body == (
        b'{"header":{},"alarms":[{"memberID":"18446744073709551615","alarm":"CORRUPT"}]}'
    )
    hash_kv = METHODS["/etcdserverpb.Maintenance/HashKV"]
    body = rpc_pb2.HashKVResponse(hash=4047696271, hash_revision=5).SerializeToString()
    assert gateway.answer(hash_kv, body).body == b'{"hash":4047696271,"hash_revision":"5"}'
    roles = METHODS["/etcdserverpb.Auth/RoleList"]
    body = rpc_pb2.AuthRoleListResponse(roles=["<é>"]).SerializeToString()
    assert gateway.answer(roles, body).body == '{"roles":["<é>"]}'.encode()


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.KeyNotProvided(), 400, 3),
        (errors.LeaseNotFound(), 404, 5),
        (errors.LeaseExists(), 400, 9),
        (errors.FutureRevision(), 400, 11),
        (errors.InvalidAuthToken(), 401, 16),
        (errors.NoLeader(), 503, 14),
        (EtcdError('"leader" field must be provided'), 500, 2),
    ],
)
def test_a_failure_is_etcds_byte_for_byte(error: EtcdError, status: int, code: int) -> None:
    answer = gateway.failure(error)
    text = json.dumps(error.text)
    assert answer.status == status
    assert answer.headers == [("Content-Type", "application/json")]
    assert answer.body == f'{{"error":{text},"code":{code},"message":{text}}}'.encode()


def test_frames_of_a_stream() -> None:
    watch = METHODS["/etcdserverpb.Watch/Watch"]
    response = rpc_pb2.WatchResponse(header=HEADER, created=True).SerializeToString()
    assert gateway.frame(watch, response) == b'{"result":{' + HEADER_JSON + b',"created":true}}\n'


def test_the_error_at_the_end_of_a_stream_speaks_both_dialects() -> None:
    frame = gateway.error_frame(errors.DeadlineExceeded("context deadline exceeded"))
    assert frame.endswith(b"\n")
    assert json.loads(frame)["error"] == {
        "grpc_code": 4,
        "http_code": 504,
        "message": "context deadline exceeded",
        "http_status": "Gateway Timeout",
        "code": 4,
    }


def test_every_error_has_a_frame() -> None:
    for error in errors.every_error():
        told = json.loads(gateway.error_frame(error()))["error"]
        assert told["http_code"] == error.http_status
        assert told["http_status"]


def test_a_stream_that_fails_before_its_first_message() -> None:
    answer = gateway.stream_failure(errors.NoLeader())
    assert answer.status == 503
    assert answer.body == gateway.error_frame(errors.NoLeader())


def test_a_stream_that_ends_without_a_message() -> None:
    assert gateway.empty_stream() == HttpAnswer(200, [("Content-Type", "application/json")], b"")
