"""A web server's machine: the agent, confined by its unit, keeps a real nginx as the cluster's keys say.

The store is on another machine. The tests are one story, in the order of this file.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import markdown
from tests.packages.booted.computer import Computer, Make
from tests.packages.booted.network import Network

NGINX = """
[resource]
name   = "nginx"
prefix = "/nginx"
keys   = ["/upstreams", "/servers"]

[[template]]
src  = "nginx:http.conf.j2"
dest = "/etc/nginx/conf.d/etcd-py-agent.conf"
mode = "0644"

[plugins.nginx]
marker = "127.0.0.1:8099"
"""
MOTTO = """
[resource]
name   = "motto"
prefix = "/web"
keys   = ["/motto"]

[[template]]
src   = "motto.conf.j2"
dest  = "/etc/nginx/snippets/motto.conf"
owner = "www-data"
mode  = "0640"

[check]
cmd = ["grep", "-q", "^add_header X-Motto [a-z]*;$", "{{src}}"]

[reload]
unit = "nginx.service"
"""
BACKEND = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(sys.argv[1].encode())
    def log_message(self, *arguments):
        return
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    network = Network(2)
    yield network
    network.take_down()


@pytest.fixture(scope="module")
def store(network: Network, make: Make) -> Computer:
    host = network.hosts[0]
    computer = make("store", host)
    computer.shell("yum -y install etcd-py", timeout_s=120)
    urls = f"http://{host.address}:2379,http://127.0.0.1:2379"
    computer.shell(
        f"sed -i -E 's#^(ETCD_(LISTEN|ADVERTISE)_CLIENT_URLS)=.*#\\1={urls}#' /etc/etcd-py/etcd-py.conf"
    )
    computer.shell("systemctl enable --now etcd-py")
    return computer


@pytest.fixture(scope="module")
def web(network: Network, make: Make, store: Computer) -> Computer:
    computer = make("web", network.hosts[1])
    computer.shell("yum -y install etcd-py-agent", timeout_s=120)
    computer.shell("systemctl enable --now nginx")
    computer.write("/srv/backend.py", BACKEND)
    for name, port in (("one", 8081), ("two", 8082)):
        computer.write(
            f"/etc/systemd/system/{name}.service",
            f"[Service]\nExecStart=/usr/bin/python3 /srv/backend.py {name} {port}\n"
            "[Install]\nWantedBy=multi-user.target\n",
        )
        computer.shell(f"systemctl enable --now {name}")
    assert store.host is not None
    computer.shell(f"sed -i 's,^nodes = .*,nodes = [\"http://{store.host.address}:2379\"],' {AGENT_TOML}")
    computer.write("/etc/etcd-py-agent/conf.d/nginx.toml", NGINX)
    return computer


PERMITS = "What the agent's unit permits"
AGENT_TOML = "/etc/etcd-py-agent/agent.toml"
PAGE = "curl -fs -H 'Host: example.com' http://127.0.0.1/"


def put(store: Computer, key: str, value: str) -> None:
    store.shell(f"etcdctl put {key} '{value}'")


def test_first_keys(store: Computer, web: Computer) -> None:
    put(store, "/nginx/upstreams/app/servers/a", "127.0.0.1:8081")
    put(store, "/nginx/servers/web/listen", "80")
    put(store, "/nginx/servers/web/server_name", "example.com")
    put(store, "/nginx/servers/web/locations/root", '{"path": "/", "upstream": "app"}')
    web.shell("systemctl enable --now etcd-py-agent")
    web.wait_for(f"{PAGE} | grep -x one", limit_s=15)
    web.wait_for("systemctl status etcd-py-agent | grep 'Status: .*1/1'", limit_s=10)


def test_traffic_follows(store: Computer, web: Computer) -> None:
    put(store, "/nginx/upstreams/app/servers/a", "127.0.0.1:8082")
    web.wait_for(f"{PAGE} | grep -x two", limit_s=15)


def test_a_value_that_nginx_would_not_take(store: Computer, web: Computer) -> None:
    """Refused by `nginx -t` alone: the host name does not resolve. Traffic and files stay."""
    before = web.read("/etc/nginx/conf.d/etcd-py-agent.conf")
    put(store, "/nginx/upstreams/app/servers/a", "nowhere.invalid:80")
    web.wait_for("journalctl -u etcd-py-agent -o cat | grep 'nowhere.invalid'", limit_s=15)
    assert web.shell(PAGE) == "two"
    assert web.read("/etc/nginx/conf.d/etcd-py-agent.conf") == before
    put(store, "/nginx/upstreams/app/servers/a", "127.0.0.1:8081")
    web.wait_for(f"{PAGE} | grep -x one", limit_s=15)


def test_a_file_of_another_owner_and_a_reload_by_systemd(store: Computer, web: Computer) -> None:
    """A second resource, loaded by `systemctl reload` of the agent; nginx.service is reloaded by systemd."""
    web.write("/etc/etcd-py-agent/templates/motto.conf.j2", "add_header X-Motto {{ getv('/motto') }};\n")
    web.write("/etc/nginx/conf.d/a-motto.conf", "include /etc/nginx/snippets/motto*.conf;\n")
    web.write("/etc/etcd-py-agent/conf.d/motto.toml", MOTTO)
    put(store, "/web/motto", "festina")
    web.shell("etcd-py-agent check-config && systemctl reload etcd-py-agent")
    web.wait_for(f"{PAGE} -D - | grep 'X-Motto: festina'", limit_s=15)
    assert web.shell("stat -c '%U %a' /etc/nginx/snippets/motto.conf") == "www-data 640\n"
    put(store, "/web/motto", "Lente;")
    web.wait_for("journalctl -u etcd-py-agent -o cat | grep -i 'motto.*check'", limit_s=15)
    put(store, "/web/motto", "lente")
    web.wait_for(f"{PAGE} -D - | grep 'X-Motto: lente'", limit_s=15)


def test_an_overlay_needs_a_drop_in(store: Computer, web: Computer) -> None:
    """`nginx -t` on files where they will be: beyond the unit's limits, but not with the manual's drop-in."""
    overlay = MOTTO.replace('cmd = ["grep", "-q", "^add_header X-Motto [a-z]*;$", "{{src}}"]',
                            'cmd = ["nginx", "-t"]\nmode = "overlay"')  # fmt: skip
    assert overlay != MOTTO
    web.write("/etc/etcd-py-agent/conf.d/motto.toml", overlay)
    web.shell("systemctl reload etcd-py-agent")
    put(store, "/web/motto", "first")
    web.wait_for("journalctl -u etcd-py-agent -o cat | grep 'motto.*failed.*unshare'", limit_s=15)
    blocks = markdown.blocks(markdown.section(markdown.read("docs/operations.md"), PERMITS))
    (drop_in,) = (block.text for block in blocks if "RestrictNamespaces" in block.text)
    web.write("/etc/systemd/system/etcd-py-agent.service.d/overlay.conf", drop_in)
    web.shell("systemctl daemon-reload && systemctl restart etcd-py-agent")
    web.wait_for(f"{PAGE} -D - | grep 'X-Motto: first'", limit_s=15)
    put(store, "/web/motto", "Lente {")
    web.wait_for("journalctl -u etcd-py-agent -o cat | grep -i 'motto.*failed.*nginx'", limit_s=15)
    put(store, "/web/motto", "lente")
    web.wait_for(f"{PAGE} -D - | grep 'X-Motto: lente'", limit_s=15)
    web.shell("rm -r /etc/systemd/system/etcd-py-agent.service.d && systemctl daemon-reload")
    web.write("/etc/etcd-py-agent/conf.d/motto.toml", MOTTO)
    web.shell("systemctl restart etcd-py-agent")


def test_what_the_unit_keeps_from_the_agent(web: Computer) -> None:
    """Its process has no right that it does not need, and cannot write beside its directories."""
    main = web.shell("systemctl show -p MainPID --value etcd-py-agent").strip()
    status = web.shell(f"cat /proc/{main}/status")
    assert "NoNewPrivs:\t1" in status and "Seccomp:\t2" in status
    # CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_NET_BIND_SERVICE
    assert f"CapBnd:\t{1 << 0 | 1 << 1 | 1 << 3 | 1 << 10:016x}" in status
    for path in ("/usr/x", "/etc/x", "/var/lib/x", "/home/x"):
        assert "Read-only" in web.refuses(f"nsenter -t {main} -m touch {path}")


def test_the_store_is_away_when_the_machine_starts(store: Computer, web: Computer) -> None:
    """nginx serves as before, the agent is up and says what it lacks; then it follows again."""
    web.shut_down()
    store.cut_power()
    web.start()
    web.wait_for(f"{PAGE} | grep -x one", limit_s=15)
    web.wait_for("systemctl is-active etcd-py-agent", limit_s=60)
    shown = web.shell("systemctl status etcd-py-agent")
    assert "degraded" in shown, shown
    assert store.host is not None
    store.host.plug_in()
    store.start()
    store.wait_for("systemctl is-active etcd-py")
    put(store, "/nginx/upstreams/app/servers/a", "127.0.0.1:8082")
    web.wait_for(f"{PAGE} | grep -x two", limit_s=60)
    assert "Traceback" not in web.shell("journalctl -u etcd-py-agent -o cat")
