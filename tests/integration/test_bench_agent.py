"""The agent's benchmark measures what it says: an agent of its own, ended afterwards."""

import sys
from pathlib import Path

from benchmarks.agent import SETTLE_S, Agent, coalesced, latency
from benchmarks.servers import Binary, running

PROGRAMS = Path(sys.executable).parent


def test_latencies_and_bursts_of_one_agent(tmp_path: Path) -> None:
    binary = Binary.of(str(PROGRAMS / "etcd-py"))
    with (
        running(binary, tmp_path) as server,
        Agent(PROGRAMS / "etcd-py-agent", tmp_path / "agent", server, 2, SETTLE_S) as agent,
    ):
        lines = list(latency(agent, 3))
        assert [line.figure for line in lines] == ["file, p50", "file, p99", "reload, p50", "reload, p99"]
        assert all(line.row == "latency-2" and line.value.endswith(" ms") for line in lines)
        # It settles for a tenth of a second, and that is measured, too.
        assert all(float(line.value.removesuffix(" ms")) >= 90 for line in lines)
        (burst,) = coalesced(agent)
        assert 1 <= int(burst.value) <= 100
        process = agent._process
    assert process.returncode == 0
