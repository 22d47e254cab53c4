"""A session of Debian's etcdctl 3.4 with one server: what each command prints, and how it ends.

IDs, sizes, versions, addresses, durations and raft's numbers are taken out of what it prints; revisions are
written relative to the beginning of the session.
"""

from __future__ import annotations

import os
import queue
import re
import subprocess
import threading
import time
from collections.abc import Callable

from tests.conformance.cases_etcdctl import Lease, Rev, Word
from tests.conformance.target import Exchange, Target

LIMIT_S = 20.0
# Revisions in JSON and in `fields`; lease and member IDs; sizes, times, versions and addresses.
_REVISION = re.compile(r'("?\w*[rR]evision"?) ?: ?(\d+)')
_NAMED_REVISION = re.compile(r"\b(revision|required revision) (\d+)")
_HEX_ID = re.compile(r"\b[0-9a-f]{15,16}\b")
_CHOSEN = re.compile(
    r'"?\b(cluster_id|member_id|raft_term|leader|raftIndex|raftTerm|raftAppliedIndex|dbSize|dbSizeInUse|ID'
    r"|ClusterID|MemberID|RaftTerm|RaftIndex|RaftAppliedIndex|Leader|DBSize|DBSizeInUse|Lease|lease)"
    r'"? ?: ?(\d{4,}|\d+)'
)
_TOOK = re.compile(r"took [=:]? ?[\d.]+\w*s|\"took\":\"[^\"]+\"")
_ADDRESS = re.compile(r"127\.0\.0\.1:\d+")
_LOG_HEAD = re.compile(r"^\{\"level\":.*$", re.MULTILINE)


class Session:
    """One session of etcdctl with one server."""

    def __init__(self, program: str, target: Target, address: str) -> None:
        self._program = program
        self._target = target
        self._environment = os.environ | {"ETCDCTL_API": "3", "ETCDCTL_ENDPOINTS": address}
        self._leases: list[str] = []
        self.transcript: list[Exchange] = []

    def run(self, *words: Word, stdin: str = "") -> None:
        done = subprocess.run(
            [self._program, *map(self._word, words)],
            env=self._environment,
            input=stdin.encode(),
            capture_output=True,
            timeout=LIMIT_S,
            check=False,
        )
        output = done.stdout.decode(errors="backslashreplace")
        if words[:2] == ("lease", "grant") and done.returncode == 0:
            self._leases.append(self._granted(output))
        text = f"exit {done.returncode}\n{self._plain(output)}{self._plain(done.stderr.decode())}"
        self.transcript.append(Exchange(self._told(words, stdin), text))

    def watch(self, *words: Word, lines: int, meanwhile: Callable[[], object] | None = None) -> None:
        started = len(self.transcript)
        process = subprocess.Popen(
            [self._program, *map(self._word, words)],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        incoming: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        assert process.stdout is not None

        def read() -> None:
            for line in process.stdout or ():
                incoming.put(line)

        reader = threading.Thread(target=read)
        reader.start()
        try:
            got: list[bytes] = []
            deadline_s = time.monotonic() + LIMIT_S
            while len(got) < lines and time.monotonic() < deadline_s:
                if meanwhile is not None and not got:
                    # etcdctl does not say when it is watching: act until it has seen an act.
                    meanwhile()
                    del self.transcript[started:]
                try:
                    got.append(incoming.get(timeout=0.5))
                except queue.Empty:
                    continue
        finally:
            process.kill()
            process.wait(LIMIT_S)
            reader.join(LIMIT_S)
            process.stdout.close()
        self.transcript.append(Exchange(self._told(words), self._plain(b"".join(got[:lines]).decode())))

    def _word(self, word: Word) -> str:
        if isinstance(word, Rev):
            return str(self._target.rev(word.offset))
        return self._leases[word.number - 1] if isinstance(word, Lease) else word

    def _told(self, words: tuple[Word, ...], stdin: str = "") -> str:
        return " ".join(["etcdctl", *map(str, words)]) + (f" <<< {stdin!r}" if stdin else "")

    def _granted(self, output: str) -> str:
        found = re.search(r'"ID":(\d+)', output)
        return f"{int(found[1]):x}" if found else output.split()[1]

    def _plain(self, text: str) -> str:
        """`text` without what the server or the clock chose."""
        text = _REVISION.sub(self._relative, text)
        text = _NAMED_REVISION.sub(self._relative, text)
        for number, lease in enumerate(self._leases, 1):
            for written in (lease.zfill(16), lease, str(int(lease, 16))):
                text = text.replace(written, f"<lease {number}>")
        text = _CHOSEN.sub(r"\1: *", text)
        text = _ADDRESS.sub("127.0.0.1:*", _HEX_ID.sub("<id>", text))
        text = _LOG_HEAD.sub("(log line)", text)
        text = re.sub(r"\d+(?:\.\d+)? [kM]B", "<size>", _TOOK.sub("took *", text))
        text = re.sub(r"\b3\.[4-9]\.\d+", "<version>", text)
        text = re.sub(r"remaining\(\d+s\)|\"ttl\":\d+", "remaining(*)", text)
        if "<version>" in text:
            # The table and the line of `endpoint status`: raft's numbers, and columns as wide as they.
            text = re.sub(r"\b\d+(?=,| *\|)", "*", text)
        return re.sub(r" +", " ", re.sub(r"-{3,}", "---", text))

    def _relative(self, found: re.Match[str]) -> str:
        revision = int(found[2])
        return f"{found[1]}: base{revision - self._target.base:+d}" if revision else found[0]
