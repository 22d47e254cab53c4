"""The pages answer as etcd does: /health and /version as recorded from etcd 3.5.1, /livez and /readyz as its
server/etcdserver/api/etcdhttp/health.go (v3.6) writes them."""

import json
from dataclasses import replace

import pytest

from etcd_server.transport import operations
from etcd_server.transport.answers import HttpAnswer
from etcd_server.transport.operations import CheckResult, HealthSnapshot, Read, Versions

GOOD = HealthSnapshot(has_leader=True, is_learner=False)
VERSIONS = Versions(etcdserver="3.6.0", etcdcluster="3.6.0", storage="3.6.0", etcdpy="0.1.0")
TEXT = ("Content-Type", "text/plain; charset=utf-8")
NOSNIFF = ("X-Content-Type-Options", "nosniff")
PAGES = ["/health", "/livez", "/readyz", "/version", "/livez/serializable_read", "/readyz/non_learner"]


def get(target: str, health: HealthSnapshot = GOOD, method: str = "GET") -> HttpAnswer:
    return operations.answer(method, target, health, VERSIONS, lambda: b"# metrics\n")


# --- /health ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target", ["/health", "/health?serializable=true", "/health?exclude=NOSPACE", "/health?%zz"]
)
def test_a_healthy_member(target: str) -> None:
    assert get(target) == HttpAnswer(200, [TEXT], b'{"health":"true","reason":""}')


@pytest.mark.parametrize(
    ("query", "health", "reason"),
    [
        ("", {"alarms": ("NOSPACE",)}, "ALARM NOSPACE"),
        ("?exclude=nospace", {"alarms": ("NOSPACE",)}, "ALARM NOSPACE"),
        ("?exclude=", {"alarms": ("NOSPACE",)}, "ALARM NOSPACE"),
        ("", {"alarms": ("CORRUPT", "NOSPACE")}, "ALARM CORRUPT"),
        ("?exclude=NOSPACE", {"alarms": ("NOSPACE", "CORRUPT")}, "ALARM CORRUPT"),
        ("", {"has_leader": False}, "RAFT NO LEADER"),
        ("?serializable=false", {"has_leader": False}, "RAFT NO LEADER"),
        ("", {"alarms": ("NOSPACE",), "has_leader": False}, "ALARM NOSPACE"),
        (
            "",
            {"linearizable_read": "etcdserver: request timed out"},
            "RANGE ERROR:etcdserver: request timed out",
        ),
        ("?serializable=true", {"serializable_read": "disk I/O error"}, "RANGE ERROR:disk I/O error"),
    ],
)
def test_an_unhealthy_member(query: str, health: dict[str, object], reason: str) -> None:
    answer = get(f"/health{query}", replace(GOOD, **health))  # type: ignore[arg-type]
    body = f'{{"health":"false","reason":"{reason}"}}\n'.encode()
    assert answer == HttpAnswer(503, [TEXT, NOSNIFF], body)


@pytest.mark.parametrize(
    ("query", "health"),
    [
        ("?exclude=NOSPACE&exclude=CORRUPT", {"alarms": ("NOSPACE", "CORRUPT")}),
        ("?serializable=true", {"has_leader": False, "linearizable_read": "etcdserver: request timed out"}),
        ("", {"serializable_read": "was not asked for"}),
    ],
)
def test_what_a_probe_does_not_ask_about_does_not_matter(query: str, health: dict[str, object]) -> None:
    assert get(f"/health{query}", replace(GOOD, **health)).status == 200  # type: ignore[arg-type]


# --- /livez and /readyz -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target", ["/livez", "/readyz", "/livez?exclude=serializable_read", "/readyz/non_learner"]
)
def test_ok(target: str) -> None:
    assert get(target) == HttpAnswer(200, [TEXT, NOSNIFF], b"ok\n")


def test_verbose() -> None:
    assert get("/readyz?verbose").body == (
        b"[+]data_corruption ok\n[+]serializable_read ok\n[+]linearizable_read ok\n[+]non_learner ok\nok\n"
    )
    assert get("/livez?verbose=1").body == b"[+]serializable_read ok\nok\n"
    assert get("/readyz?verbose&exclude=linearizable_read&exclude=nosuch&exclude=data_corruption").body == (
        b"[+]serializable_read ok\n[+]non_learner ok\nok\n"
    )
    assert get("/livez/serializable_read?verbose").body == b"[+]serializable_read ok\nok\n"


def test_a_failed_check_lists_all() -> None:
    health = replace(
        GOOD, is_learner=True, alarms=("NOSPACE", "CORRUPT"), linearizable_read="etcdserver: no leader"
    )
    answer = get("/readyz", health)
    assert answer == HttpAnswer(
        503,
        [TEXT, NOSNIFF],
        b"[-]data_corruption failed: alarm activated: CORRUPT\n"
        b"[+]serializable_read ok\n"
        b"[-]linearizable_read failed: etcdserver: no leader\n"
        b"[-]non_learner failed: not supported for learner\n\n",
    )
    only = "?exclude=data_corruption&exclude=linearizable_read&exclude=non_learner"
    assert get(f"/readyz{only}", health).body == b"ok\n"
    assert get("/livez", health).status == 200


@pytest.mark.parametrize(
    ("name", "health"),
    [
        ("data_corruption", {"data_corruption": True}),
        ("data_corruption", {"alarms": ("CORRUPT",)}),
        ("serializable_read", {"serializable_read": "broken"}),
        ("linearizable_read", {"linearizable_read": "broken"}),
        ("non_learner", {"is_learner": True}),
    ],
)
def test_one_check_by_its_own_path(name: str, health: dict[str, object]) -> None:
    bad = replace(GOOD, **health)  # type: ignore[arg-type]
    assert get(f"/readyz/{name}", bad).status == get("/readyz", bad).status == 503
    assert get(f"/readyz/{name}").status == 200
    # A single check cannot be excluded from its own page.
    assert get(f"/readyz/{name}?exclude={name}", bad).status == 503


# --- which reads ------------------------------------------------------------------------------------------

SERIALIZABLE, LINEARIZABLE = frozenset({Read.SERIALIZABLE}), frozenset({Read.LINEARIZABLE})


@pytest.mark.parametrize(
    ("target", "reads"),
    [
        ("/health", LINEARIZABLE),
        ("/health?serializable=true", SERIALIZABLE),
        ("/health?serializable=1", LINEARIZABLE),
        ("/livez", SERIALIZABLE),
        ("/livez?exclude=serializable_read", frozenset()),
        ("/livez/serializable_read", SERIALIZABLE),
        ("/readyz", SERIALIZABLE | LINEARIZABLE),
        ("/readyz?verbose&exclude=linearizable_read", SERIALIZABLE),
        ("/readyz/linearizable_read", LINEARIZABLE),
        ("/readyz/data_corruption", frozenset()),
        ("/version", frozenset()),
        ("/metrics", frozenset()),
        ("/nosuch", frozenset()),
    ],
)
def test_checks_needed(target: str, reads: frozenset[Read]) -> None:
    assert operations.checks_needed("GET", target) == operations.checks_needed("HEAD", target) == reads
    assert operations.checks_needed("POST", target) == frozenset()


def test_results_for_the_metrics() -> None:
    bad = replace(GOOD, linearizable_read="no")
    assert operations.check_results("GET", "/health", bad) == [CheckResult("health", "", "RANGE ERROR:no")]
    assert operations.check_results("GET", "/readyz?exclude=non_learner", bad) == [
        CheckResult("readyz", "data_corruption", None),
        CheckResult("readyz", "serializable_read", None),
        CheckResult("readyz", "linearizable_read", "no"),
    ]
    assert operations.check_results("GET", "/livez/serializable_read", bad) == [
        CheckResult("livez", "serializable_read", None)
    ]
    for method, target in [("GET", "/version"), ("GET", "/metrics"), ("POST", "/health"), ("GET", "/nosuch")]:
        assert operations.check_results(method, target, bad) == []


# --- the others -------------------------------------------------------------------------------------------


def test_version() -> None:
    answer = get("/version")
    assert (answer.status, answer.headers) == (200, [("Content-Type", "application/json")])
    assert answer.body == (b'{"etcdserver":"3.6.0","etcdcluster":"3.6.0","storage":"3.6.0","etcdpy":"0.1.0"}')


def test_version_before_anything_is_decided() -> None:
    versions = replace(VERSIONS, etcdcluster="", storage="")
    told = json.loads(operations.answer("GET", "/version", GOOD, versions, lambda: b"").body)
    assert (told["etcdcluster"], told["storage"]) == ("not_decided", "unknown")


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_metrics(method: str) -> None:
    kind = ("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
    assert get("/metrics", method=method) == HttpAnswer(200, [kind], b"# metrics\n")


@pytest.mark.parametrize("target", PAGES)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_other_methods(method: str, target: str) -> None:
    answer = get(target, method=method)
    assert (answer.status, answer.body) == (405, b"Method Not Allowed\n")
    assert answer.headers == [("Allow", "GET, HEAD"), TEXT, NOSNIFF]


@pytest.mark.parametrize("target", PAGES)
def test_head_is_get(target: str) -> None:
    assert get(target, method="HEAD") == get(target)


@pytest.mark.parametrize(
    "target",
    ["/", "/health/", "/livez/", "/livez/nosuch", "/livez/non_learner", "/readyz/a/b", "/version/", "/v"],
)
def test_other_paths(target: str) -> None:
    assert not operations.serves(target)
    assert get(target) == HttpAnswer(404, [TEXT, NOSNIFF], b"404 page not found\n")


@pytest.mark.parametrize("target", [*PAGES, "/metrics", "/health?a=b", "/%68ealth"])
def test_paths_that_are_served(target: str) -> None:
    assert operations.serves(target)
    assert get(target).status == 200
