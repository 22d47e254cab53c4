"""Cases of the JSON gateway and of the operational pages: encodings, errors, streams, and odd HTTP."""

from __future__ import annotations

from collections.abc import Callable

from tests.conformance.gateway import Gateway, text64

A, B, K, Z = text64("a"), text64("b"), text64("k"), text64("z")


def keys(g: Gateway) -> None:
    g.post("/v3/kv/put", {"key": A, "value": text64("1")})
    g.post("/v3/kv/put", {"key": A, "value": text64("2"), "prev_kv": True})
    g.post("/v3/kv/put", {"key": text64(b"\xff\xfe"), "value": text64(b"\0\x01")})
    g.post("/v3/kv/range", {"key": A})
    g.post("/v3/kv/range", {"key": text64("none")})
    g.post("/v3/kv/range", {"key": A, "range_end": text64(b"\0")})
    g.post("/v3/kv/range", {"key": A, "range_end": Z, "limit": 1})
    g.post("/v3/kv/range", {"key": A, "range_end": text64(b"\0"), "limit": "1", "keys_only": True})
    g.post("/v3/kv/range", {"key": A, "range_end": text64(b"\0"), "count_only": True})
    g.post("/v3/kv/range", {"key": A, "revision": g.rev(1)})
    g.post("/v3/kv/range", {"key": A, "revision": str(g.rev(1))})
    g.post("/v3/kv/range", {"key": A, "range_end": Z, "sort_order": "DESCEND", "sort_target": "VALUE"})
    g.post("/v3/kv/range", {"key": A, "range_end": Z, "sort_order": 2, "sort_target": 4})
    g.post("/v3/kv/deleterange", {"key": A, "prev_kv": True})
    g.post("/v3/kv/deleterange", {"key": A})
    g.post("/v3/kv/range", {"key": A, "serializable": True})


def transactions(g: Gateway) -> None:
    g.post("/v3/kv/put", {"key": K, "value": A})
    guard = {"key": K, "target": "MOD", "result": "EQUAL", "mod_revision": str(g.rev(1))}
    put = {"request_put": {"key": K, "value": B, "prev_kv": True}}
    g.post("/v3/kv/txn", {"compare": [guard], "success": [put, {"request_range": {"key": K}}]})
    g.post("/v3/kv/txn", {"compare": [guard], "success": [put], "failure": [{"request_range": {"key": K}}]})
    g.post("/v3/kv/txn", {"success": [{"request_txn": {"failure": [], "success": [put]}}]})
    g.post("/v3/kv/txn", {"success": [{"request_delete_range": {"key": K, "prev_kv": True}}]})
    g.post("/v3/kv/txn", {"compare": [{"key": K, "target": "VALUE", "value": A}], "success": [put]})
    g.post("/v3/kv/txn", {"compare": [{"key": K, "target": 0, "result": 0, "version": 0}]})
    g.post("/v3/kv/txn", {"success": [put, put]})
    g.post("/v3/kv/txn", {"success": [{}]})
    g.post("/v3/kv/txn", {})


def leases(g: Gateway) -> None:
    g.post("/v3/lease/grant", {"TTL": 60, "ID": 7})
    g.post("/v3/lease/grant", {"TTL": "60", "ID": "7"})
    g.post("/v3/lease/grant", {"TTL": 9000000001, "ID": 8})
    g.post("/v3/lease/grant", {"TTL": 60})
    g.post("/v3/kv/put", {"key": K, "lease": g.last_lease})
    g.post("/v3/kv/put", {"key": A, "lease": 7})
    g.post("/v3/kv/put", {"key": A, "lease": 999})
    g.post("/v3/lease/timetolive", {"ID": 7, "keys": True})
    g.post("/v3/kv/lease/timetolive", {"ID": "7", "keys": True})
    g.post("/v3/lease/timetolive", {"ID": 99})
    g.post("/v3/lease/leases")
    g.post("/v3/kv/lease/leases")
    g.stream("/v3/lease/keepalive", {"ID": 7}, 1)
    g.stream("/v3/lease/keepalive", {"ID": 99}, 1)
    g.post("/v3/lease/revoke", {"ID": 99})
    g.post("/v3/lease/revoke", {"ID": 7})
    g.post("/v3/kv/lease/revoke", {"ID": 7})
    g.post("/v3/kv/range", {"key": A})


def errors(g: Gateway) -> None:
    g.post("/v3/kv/put", {"key": K})
    g.post("/v3/kv/range", {"key": ""})
    g.post("/v3/kv/range")
    g.post("/v3/kv/range", {"key": K, "revision": g.rev(50)})
    g.post("/v3/kv/compaction", {"revision": g.rev(50)})
    g.post("/v3/kv/compaction", {"revision": g.rev(1)})
    g.post("/v3/kv/compaction", {"revision": str(g.rev(1)), "physical": True})
    g.post("/v3/kv/range", {"key": K, "revision": g.rev(0)})
    g.post("/v3/kv/put", {"key": text64("none"), "ignore_value": True})
    g.post("/v3/kv/put", {"key": K, "value": A, "ignore_value": True})
    g.post("/v3/kv/put", {"key": K, "lease": 7, "ignore_lease": True})


def odd_json(g: Gateway) -> None:
    """Texts of a JSON parser are its own; that the request is refused, and how, is not."""
    for body in (
        "",
        "{",
        "not json",
        "[]",
        "null",
        '"x"',
        "17",
        '{"key": 5}',
        '{"key": "%%%"}',
        '{"key": "YQ==", "limit": "many"}',
        '{"key": "YQ==", "limit": 1.5}',
        '{"key": "YQ==", "sort_order": "UPWARD"}',
        '{"key": "YQ==", "keys_only": "yes"}',
        '{"key": ["YQ=="]}',
    ):
        g.post("/v3/kv/range", body, body_too=False)
    g.post("/v3/kv/range", '{"key": "YQ==", "no_such_field": {"x": [1]}}')
    g.post("/v3/kv/range", '{"key": "YQ==", "limit": null}')
    g.post("/v3/kv/range", '{"key": "YQ==", "rangeEnd": "Yg=="}')
    g.post("/v3/kv/put", '{"key": "YQ==", "prevKv": true}')
    g.post("/v3/kv/range", '{"key": "YQ"}', body_too=False)
    g.post("/v3/kv/range", '{"key": "_w=="}', body_too=False)


def odd_http(g: Gateway) -> None:
    g.send("GET", "/v3/kv/range")
    g.send("PUT", "/v3/kv/range", "{}")
    g.send("DELETE", "/v3/kv/put", "{}")
    g.post("/v3/kv/nothing")
    g.post("/v3/kv")
    g.post("/v3/nothing/at/all")
    g.post("/v3beta/kv/put", {"key": K, "value": A})
    g.post("/v3beta/kv/range", {"key": K})
    g.post("/v3/kv/range", {"key": K}, headers={"Content-Type": "text/plain"})
    g.post("/v3/kv/range", {"key": K}, headers={"Content-Type": "application/x-www-form-urlencoded"})
    g.post("/v3/kv/range", {"key": K}, headers={"Accept": "text/html"})


def watches(g: Gateway) -> None:
    g.post("/v3/kv/put", {"key": K, "value": A})
    g.post("/v3/kv/put", {"key": K, "value": B})
    g.post("/v3/kv/deleterange", {"key": K})
    g.stream("/v3/watch", {"create_request": {"key": K, "start_revision": g.rev(1), "prev_kv": True}}, 2)
    g.stream(
        "/v3/watch",
        {"create_request": {"key": K}},
        2,
        meanwhile=lambda: g.post("/v3/kv/put", {"key": K, "value": Z}),
    )
    g.stream("/v3/watch", {"create_request": {"key": K, "filters": ["NOPUT"], "start_revision": g.rev(1)}}, 2)
    g.stream("/v3/watch", {"create_request": {"key": Z, "range_end": A}}, 1)
    g.stream("/v3beta/watch", {"create_request": {"key": K, "start_revision": g.rev(2)}}, 2)
    g.post("/v3/kv/compaction", {"revision": str(g.rev(3))})
    g.stream("/v3/watch", {"create_request": {"key": K, "start_revision": g.rev(1)}}, 2)


def maintenance(g: Gateway) -> None:
    g.post("/v3/cluster/member/list")
    g.post("/v3/cluster/member/list", {"linearizable": True})
    g.post("/v3/maintenance/status")
    g.post("/v3/maintenance/alarm")
    g.post("/v3/maintenance/alarm", {"action": "ACTIVATE", "memberID": "77", "alarm": "NOSPACE"})
    g.post("/v3/kv/put", {"key": K})
    g.post("/v3/maintenance/alarm", {"action": 2, "memberID": 77, "alarm": 1})
    g.post("/v3/kv/put", {"key": K})


def pages(g: Gateway) -> None:
    g.send("GET", "/version")
    g.send("POST", "/version")
    g.send("GET", "/health")
    g.send("POST", "/health")
    g.send("GET", "/no/such/page")
    g.send("GET", "/")


CASES: dict[str, Callable[[Gateway], None]] = {
    f"gateway_{case.__name__}": case
    for case in (keys, transactions, leases, errors, odd_json, odd_http, watches, maintenance, pages)
}
