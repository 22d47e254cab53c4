"""The benchmark's own arithmetic, and that it watches and ends the servers that it starts."""

import stat
import sys
from pathlib import Path

import pytest

from benchmarks import bench
from benchmarks.cluster import running_three
from benchmarks.rows import ROWS, Row, Sample, Scale, Target
from benchmarks.servers import BenchError, Binary, Server, running

SCALE = Scale(1.0, 1, 10, 1)

FAKE = """#!{python}
import http.server, json, sys
if "--version" in sys.argv:
    print("fake Version: 1.2.3")
    sys.exit()
url = sys.argv[sys.argv.index("--listen-client-urls") + 1]
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{{"health":"true"}}')
    def do_POST(self):
        self.send_response(200)
        self.end_headers()
        name = sys.argv[sys.argv.index("--name") + 1]
        self.wfile.write(json.dumps({{"header": {{"member_id": name}}, "leader": "m1"}}).encode())
    def log_message(self, *args):
        pass
http.server.HTTPServer(("127.0.0.1", int(url.rpartition(":")[2])), Health).serve_forever()
"""


def program(folder: Path, text: str) -> Binary:
    path = folder / "fake"
    path.write_text(text.format(python=sys.executable))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return Binary.of(str(path))


def test_a_server_is_started_measured_and_ended(tmp_path: Path) -> None:
    binary = program(tmp_path, FAKE)
    assert binary.name == "fake 1.2.3"
    with running(binary, tmp_path) as server:
        assert 0 < server.start_s < 60
        assert server.cpu_s() > 0
        memory = server.memory()
        assert memory.resident == memory.anonymous + memory.file > 1 << 20
        folder = server.data_dir.parent
        assert folder.exists()
    assert not folder.exists()
    assert server._process is None


def test_three_members_are_measured_as_one(tmp_path: Path) -> None:
    with running_three(program(tmp_path, FAKE), tmp_path) as trio:
        assert [member.data_dir.name for member in trio.members] == ["m0", "m1", "m2"]
        assert trio.leader is trio.members[1]
        assert trio.address == trio.leader.address
        trio.through_follower = True
        assert trio.address == trio.members[0].address
        assert trio.cpu_s() >= max(member.cpu_s() for member in trio.members)
        assert trio.memory().resident >= 3 << 20
    assert not any(member._process for member in trio.members)


def test_a_server_that_does_not_start_is_reported_with_its_log(tmp_path: Path) -> None:
    binary = program(
        tmp_path, "#!{python}\nimport sys\nprint('1.0.0')\nsys.exit('no disk' if sys.argv[2:] else 0)\n"
    )
    with pytest.raises(BenchError, match=r"fake 1\.0\.0 does not serve: .*no disk"):
        Server(binary, tmp_path / "data").start()


def test_a_missing_program_is_named() -> None:
    with pytest.raises(BenchError, match="nowhere/etcd: no such program"):
        Binary.of("nowhere/etcd")


@pytest.mark.parametrize(
    ("target", "ours", "other", "reached"),
    [
        (Target("rate", 1.5), 150, 100, "yes"),
        (Target("rate", 1.5), 149, 100, "no"),
        (Target("rate", 0.5, at_most=True), 50, 100, "yes"),
        (Target("rate", 0.5, at_most=True), 51, 100, "no"),
        (Target("rate", 1.0, at_most=True, absolute=True), 0.9, 0.1, "yes"),
        (Target("rate", 1.0, at_most=True, absolute=True), 1.1, 9, "no"),
    ],
)
def test_targets(target: Target, ours: float, other: float, reached: str) -> None:
    row = Row("row", "a row", lambda server, scale: Sample({}), (target,))
    results = [bench.Result("a", {"rate": ours}, ""), bench.Result("b", {"rate": other}, "")]
    assert [line[-1] for line in bench._verdicts(row, results)] == [reached]


def test_a_row_that_failed_has_no_verdict() -> None:
    results = [bench.Result("a", {}, "broken"), bench.Result("b", {"rate": 1.0}, "")]
    assert [line[-1] for line in bench._verdicts(ROWS[0], results)] == ["-"]
    assert "FAILED: broken" in bench._describe(ROWS[0], SCALE, results)


def test_the_median_of_the_rounds_counts() -> None:
    samples = [Sample({"rate": rate}) for rate in (1.0, 9.0, 2.0)]
    assert bench._median("a", samples).figures == {"rate": 2.0}


def test_row_names_are_unique() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
