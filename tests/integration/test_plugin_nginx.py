"""The agent, a real nginx, a real store: no request of ten thousand fails while reloads move the traffic."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from etcd_client import Client
from tests.plugin_load import NGINX, TEMPORARY, Backends, HttpLoad, ask
from tests.plugin_support import AgentProcess, ended, installed_plugins, wait_for
from tests.servers import available_servers, free_ports, start_server
from tests.unit.agent.support import write_tree

REQUESTS = 10_000
STORES = [kind for kind in available_servers() if kind in ("3.4", "etcd-py")]

pytestmark = [
    pytest.mark.skipif(not os.path.exists(NGINX), reason="nginx is not installed"),
    pytest.mark.skipif(not STORES, reason="no store to run against"),
]


def write_nginx(folder: Path) -> list[str]:
    """A private nginx that includes what the agent writes; returns the command that runs it."""
    temporary = "\n".join(f"{name}_temp_path {folder}/temp;" for name in TEMPORARY)
    write_tree(
        folder,
        {
            "temp/.keep": "",
            "conf.d/.keep": "",
            "nginx.conf": f"daemon off; worker_processes 2; pid {folder}/pid; error_log {folder}/log;\n"
            f"events {{}}\nhttp {{\naccess_log off;\n{temporary}\ninclude conf.d/*.conf;\n}}\n",
        },
    )
    return [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "log")]


@pytest.mark.parametrize("kind", STORES)
def test_no_request_of_ten_thousand_fails_while_traffic_moves(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "nginx"
    command = write_nginx(folder)
    port, marker_port = free_ports(2)
    backends = Backends(tmp_path / "backends", ("one", "two"))
    with installed_plugins(tmp_path / "packages") as packages, start_server(kind, tmp_path) as store:
        agent, client = AgentProcess(tmp_path, packages), Client(store.url)
        agent.write(
            store.url,
            {
                "nginx": f"""
[resource]
prefix = "/nginx"
keys = ["/upstreams", "/servers"]
[[template]]
src = "nginx:http.conf.j2"
dest = "{folder}/conf.d/etcd.conf"
[plugins.nginx]
conf = "{folder}/nginx.conf"
prefix = "{folder}"
pid = "{folder}/pid"
marker = "127.0.0.1:{marker_port}"
[health]
interval = "100ms"
"""
            },
        )
        server = "/demo/nginx/upstreams/app/servers/a"
        client.put(server, backends.address("one"))
        client.put("/demo/nginx/servers/web/listen", f"127.0.0.1:{port}")
        client.put("/demo/nginx/servers/web/locations/root", json.dumps({"path": "/", "upstream": "app"}))
        first = agent.run("once")
        assert first.returncode == 0, first.stderr
        nginx = subprocess.Popen(command, stdin=subprocess.DEVNULL)

        def answer() -> str:
            try:
                return ask(port, timeout_s=2)
            except (OSError, ValueError) as error:
                return str(error)

        try:
            wait_for(lambda: answer() == "one", "nginx serves")
            agent.start()
            moves = 0
            with HttpLoad(port) as load:
                while load.total < REQUESTS or moves < 6:
                    name = "two" if answer() == "one" else "one"
                    client.put(server, backends.address(name))
                    wait_for(lambda name=name: answer() == name, agent.tail)
                    moves += 1
            assert load.errors == []
            assert set(load.answers) == {"one", "two"}
            print(f"{load.total} requests, {moves} reloads: {dict(load.answers)}")
        finally:
            agent.close()
            ended([nginx])
            backends.close()
            client.close()
