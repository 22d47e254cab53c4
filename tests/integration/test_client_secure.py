"""The client, an etcd that demands who asks, and https: against the real etcd (3.4, and 3.5 where it is)."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from etcd_client import (
    Client,
    Follow,
    Listing,
    LiveConfig,
    NotNow,
    PermissionDenied,
    PutResult,
    Unauthenticated,
    Unreachable,
    WatchBatch,
    ops,
)
from etcd_client.registry import Registration
from tests.integration.secure_support import SecureEtcd, ask, protect
from tests.servers import available_servers, free_ports
from tests.unit.client.certificates import Authority

LIMIT_S = 20.0
REAL = [kind for kind in available_servers() if kind != "etcd-py"]
TOKEN_TTL_S = 2
pytestmark = pytest.mark.skipif(not REAL, reason="etcd is not installed")


# --- a user and a password ----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=REAL)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureEtcd]:
    flags = ["--auth-token-ttl", str(TOKEN_TTL_S)]
    with SecureEtcd(request.param, tmp_path_factory.mktemp("etcd"), flags=flags) as running:
        protect(running)
        yield running  # type: ignore[misc]


@pytest.fixture
def client(server: SecureEtcd) -> Iterator[Client]:
    with Client(server.url, user="app", password="app's password") as made:
        yield made


def test_a_user_reads_and_writes_what_it_may(client: Client) -> None:
    client.put("/app/a", "1")
    found = client.get("/app/a")
    assert found is not None and found.value == b"1"
    done = client.txn(success=[ops.put("/app/b", "2")])
    assert isinstance(done.responses[0], PutResult)
    with pytest.raises(PermissionDenied, match="permission denied"):
        client.get("/other")
    with pytest.raises(PermissionDenied):
        next(client.watch("/other"))


def test_wrong_passwords_and_unknown_users_are_told_in_one_line(server: SecureEtcd) -> None:
    for user in ("app", "nobody"):
        with (
            Client(server.url, user=user, password="guessed") as client,
            pytest.raises(Unauthenticated) as caught,
        ):
            client.put("/app/a", "no")
        assert str(caught.value) == (
            f"user '{user}': etcdserver: authentication failed, invalid user ID or password ({server.url})"
        )
    with Client(server.url) as client, pytest.raises(Unauthenticated, match="user name is empty"):
        client.put("/app/a", "no")
    nobody = (Unauthenticated, PermissionDenied)  # the latter before 3.5.5
    with Client(server.url) as client, pytest.raises(nobody, match=r"user name is empty|permission denied"):
        next(client.watch("/app/a"))


def test_a_password_file_is_read_anew_for_each_token(server: SecureEtcd, tmp_path: Path) -> None:
    file = tmp_path / "password"
    with Client(server.url, user="app", password=file.read_text) as client:
        with pytest.raises(Unauthenticated, match=r"'app': the password cannot be read: .*No such file"):
            client.get("/app/a")
        file.write_text("app's password")
        client.put("/app/a", "1")


def test_a_token_that_is_no_longer_good_is_renewed(client: Client, server: SecureEtcd) -> None:
    """Calls and new streams alike. A change of the roles makes the tokens of everybody old."""
    revision = client.put("/app/a", "1").revision
    watch = client.watch(prefix="/app/", start_revision=revision, idle_timeout_s=0.5)
    assert next(watch).events[0].kv.value == b"1"
    as_root = {"user": "root", "password": "root's password"}
    ask(server, "/v3/auth/role/add", {"name": f"role{time.monotonic_ns()}"}, **as_root)
    client.put("/app/a", "2")
    tokens = client._session._tokens
    assert tokens is not None
    tokens._token = "expired.1"
    time.sleep(0.6)  # the stream is silent for longer than it may, so the next one needs a token
    tokens._token = "expired.2"
    client.put("/app/a", "3")
    assert [next(watch).events[0].kv.value for _ in range(2)] == [b"2", b"3"]
    tokens._token = "expired.3"
    assert client.lease(5).keep_alive_once() == 5


def test_a_token_expires_without_use(server: SecureEtcd, client: Client) -> None:
    client.put("/app/a", "1")
    tokens = client._session._tokens
    assert tokens is not None
    before = tokens._token
    time.sleep(TOKEN_TTL_S + 1.5)
    client.put("/app/a", "2")
    assert tokens._token != before


def test_many_threads_renew_one_token(client: Client) -> None:
    client.put("/app/a", "1")
    tokens = client._session._tokens
    assert tokens is not None
    renewed: list[str] = []
    authenticate = tokens._authenticate

    def counted(asking: object) -> str:
        renewed.append(authenticate(asking))  # type: ignore[arg-type]
        return renewed[-1]

    tokens._token, tokens._authenticate = "expired.4", counted  # type: ignore[method-assign, assignment]
    threads = [threading.Thread(target=client.put, args=(f"/app/t{n}", "v")) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    assert client.get_prefix("/app/t", count_only=True).count == 8
    assert len(renewed) == 1


def test_live_configuration_goes_on_after_a_restart(tmp_path: Path) -> None:
    """A restarted member knows no simple token any more."""
    with SecureEtcd(REAL[0], tmp_path) as server:
        protect(server)
        with (
            Client(server.url, user="app", password="app's password") as client,
            LiveConfig(client, "/app/") as config,
        ):
            assert config.wait_for(client.put("/app/k", "1").revision, LIMIT_S)
            server.stop()
            server.start()
            assert config.wait_for(client.put("/app/k", "2").revision, LIMIT_S)
            assert config["k"] == "2"


def test_following_begins_again_once_the_permission_is_there(server: SecureEtcd) -> None:
    as_root = {"user": "root", "password": "root's password"}
    name = f"u{time.monotonic_ns()}"
    ask(server, "/v3/auth/user/add", {"name": name, "password": "x"}, **as_root)
    with Client(server.url, user=name, password="x") as client, Follow(client, "/app/") as follow:
        with pytest.raises(PermissionDenied):
            next(follow)
        assert isinstance(follow.last_error, PermissionDenied)
        ask(server, "/v3/auth/user/grant", {"user": name, "role": "app"}, **as_root)
        assert isinstance(next(follow), Listing)
        client.put("/app/z", "1")
        assert isinstance(next(follow), WatchBatch)
        ask(server, "/v3/auth/user/revoke", {"name": name, "role": "app"}, **as_root)
        assert follow._watch is not None and follow._watch._response is not None
        follow._watch._response.abort()
        with pytest.raises(PermissionDenied):
            for _ in follow:
                continue


def test_a_registration_that_is_not_permitted_leaves_no_leases_behind(
    client: Client, server: SecureEtcd
) -> None:
    with Client(server.url, user="root", password="root's password") as root:
        before = set(root.leases())
        registration = Registration(client, "/services/a", "10.0.0.1:80", ttl_s=60)
        registration.start()
        deadline_s = time.monotonic() + LIMIT_S
        while not isinstance(registration.last_error, PermissionDenied):
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        registration.stop()
        assert set(root.leases()) <= before


def test_a_user_where_nobody_is_asked_who_they_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without authentication the calls go without a token; switched on later, it is used."""
    with (
        SecureEtcd(REAL[0], tmp_path) as server,
        Client(server.url, user="app", password="app's password") as client,
    ):
        client.put("/app/a", "1")
        client.put("/app/a", "2")
        warnings = [record.getMessage() for record in caplog.records if "going on without" in record.message]
        assert len(warnings) == 1 and "password" not in warnings[0]
        protect(server)
        client.put("/app/a", "3")
        with pytest.raises(PermissionDenied):
            client.put("/b", "4")


# --- https --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def tls_flags(authority: Authority, name: str, *more: str, **options: object) -> list[str]:
    certificate, key = authority.issue(name, **options)  # type: ignore[arg-type]
    return ["--cert-file", certificate, "--key-file", key, *more]


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[SecureEtcd]:
    """https, and a certificate is demanded of the client."""
    demanded = ("--client-cert-auth", "--trusted-ca-file", str(authority.path))
    flags = tls_flags(authority, "server", *demanded)
    with SecureEtcd(REAL[0], tmp_path_factory.mktemp("secure"), flags=flags, https=True) as running:
        yield running  # type: ignore[misc]


def test_https_with_a_certificate_of_the_client(secure: SecureEtcd, authority: Authority) -> None:
    with Client(secure.url, ca_file=str(authority.path), cert=authority.issue("me")) as client:
        revision = client.put("/k", "v").revision
        assert next(client.watch("/k", start_revision=revision)).events[0].kv.value == b"v"
        with client.lease(5) as lease:
            assert lease.keep_alive_once() == 5


@pytest.mark.parametrize("shown", ["nothing", "an expired certificate", "one of another authority"])
def test_a_client_that_the_server_refuses(
    secure: SecureEtcd, authority: Authority, shown: str, tmp_path: Path
) -> None:
    """In TLS 1.3 it depends on the moment whether the server's alert or the end of the connection is seen."""
    cert = None
    if shown == "an expired certificate":
        cert = authority.issue("late", expired=True)
    elif shown == "one of another authority":
        cert = Authority(tmp_path, "other").issue("stranger")
    alert = "the server refuses the TLS handshake: "
    expected = f"{alert}(it demands|it does not|this client's)|miss, this client's certificate|reset by peer"
    with (
        Client(secure.url, ca_file=str(authority.path), cert=cert, timeout_s=0.5) as client,
        pytest.raises(NotNow, match=expected) as caught,
    ):
        client.get("/k")
    assert "\n" not in str(caught.value)


def refusal(url: str, authority: Authority, **options: object) -> str:
    """What a put is refused with, nothing having been sent."""
    with (
        Client(url, ca_file=str(authority.path), timeout_s=0.4, **options) as client,  # type: ignore[arg-type]
        pytest.raises(Unreachable) as caught,
    ):
        client.put("/k", "no")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_wrong_authority(secure: SecureEtcd, authority: Authority, tmp_path: Path) -> None:
    told = refusal(secure.url, Authority(tmp_path, "other"), cert=authority.issue("me"))
    assert told == (
        "cannot connect: certificate verify failed: the server's certificate: unable to get local issuer "
        f"certificate; is the CA file that of the server's authority? ({secure.url})"
    )


def test_an_expired_certificate_of_the_server(tmp_path: Path, authority: Authority) -> None:
    flags = tls_flags(authority, "old", expired=True)
    with SecureEtcd(REAL[0], tmp_path, flags=flags, https=True) as server:
        assert "the server's certificate: certificate has expired" in refusal(server.url, authority)


def test_a_name_that_is_not_the_host(tmp_path: Path, authority: Authority) -> None:
    flags = tls_flags(authority, "named", dns="etcd.example")
    with SecureEtcd(REAL[0], tmp_path, flags=flags, https=True) as server:
        assert "IP address mismatch, certificate is not valid for '127.0.0.1'" in refusal(
            server.url, authority
        )
        with Client(server.url, ca_file=str(authority.path), server_name="etcd.example") as client:
            client.put("/k", "v")
        other = refusal(server.url, authority, server_name="other.example")
        assert "Hostname mismatch, certificate is not valid for 'other.example'" in other
        with Client(server.url, insecure_skip_tls_verify=True) as client:
            found = client.get("/k")
            assert found is not None and found.value == b"v"


def test_https_asked_of_a_server_without_it(server: SecureEtcd, authority: Authority) -> None:
    told = refusal(server.url.replace("http:", "https:"), authority)
    assert "no TLS handshake: " in told and "does the endpoint speak https?" in told


def test_the_next_endpoint_is_asked_where_one_cannot_be_trusted(
    secure: SecureEtcd, authority: Authority, tmp_path: Path
) -> None:
    (closed,) = free_ports(1)
    flags = tls_flags(Authority(tmp_path, "stranger"), "stranger")
    with (
        SecureEtcd(REAL[0], tmp_path, flags=flags, https=True) as stranger,
        Client(
            [f"https://127.0.0.1:{closed}", stranger.url, secure.url],
            ca_file=str(authority.path),
            cert=authority.issue("me"),
        ) as client,
    ):
        revision = client.put("/k", "there").revision
        found = client.get("/k", revision=revision)
        assert found is not None and found.value == b"there"


def test_files_that_cannot_be_used_are_named(authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.issue("me")
    _, other_key = authority.issue("other")
    empty = tmp_path / "empty.pem"
    empty.write_text("nothing")
    missing = str(tmp_path / "missing.pem")
    for options, expected in (
        ({"ca_file": missing}, f"CA file {missing}: No such file or directory"),
        ({"ca_file": str(empty)}, f"CA file {empty}: expected PEM"),
        ({"cert": (missing, key)}, f"certificate {missing}: No such file or directory"),
        ({"cert": (certificate, missing)}, f"key {missing}: No such file or directory"),
        ({"cert": (certificate, str(empty))}, f"certificate and key {certificate}, {empty}: expected PEM"),
        ({"cert": (certificate, other_key)}, f"{other_key} does not belong to the certificate {certificate}"),
    ):
        with pytest.raises(ValueError) as caught:
            Client("https://127.0.0.1", **options)
        assert expected in str(caught.value)


# --- the command line ---------------------------------------------------------------------------------------


def run(endpoints: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from etcd_client.ctl import main; main()", *arguments],
        env={**os.environ, "ETCDCTL_ENDPOINTS": endpoints, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def test_the_command_line_as_a_user(server: SecureEtcd) -> None:
    done = run(server.url, "--user", "app:app's password", "put", "/app/c", "1")
    assert (done.returncode, done.stdout) == (0, "OK\n"), done.stderr
    done = run(server.url, "get", "/app/c", "--user", "app", ETCDCTL_PASSWORD="app's password")
    assert (done.returncode, done.stdout) == (0, "/app/c\n1\n"), done.stderr
    done = run(server.url, "get", "/app/c", "--user", "app", "--password", "wrong")
    assert done.returncode == 1
    assert done.stderr.startswith("etcd-pyctl: user 'app': etcdserver: authentication failed")
    assert done.stderr.count("\n") == 1
    done = run(server.url, "get", "/app/c", "--password", "x")
    assert done.returncode == 2 and "--password is only of use with --user" in done.stderr


def test_the_command_line_over_https(secure: SecureEtcd, authority: Authority) -> None:
    certificate, key = authority.issue("me")
    shown = ["--cert", certificate, "--key", key]
    done = run(secure.url, "put", "/c", "1", "--cacert", str(authority.path), *shown)
    assert (done.returncode, done.stdout) == (0, "OK\n"), done.stderr
    done = run(secure.url, "put", "/c", "1", *shown, "--command-timeout", "1s")
    assert done.returncode == 3 and "certificate verify failed" in done.stderr
    done = run(secure.url, "put", "/c", "1", *shown, "--insecure-skip-tls-verify")
    assert (done.returncode, done.stdout) == (0, "OK\n"), done.stderr
