"""The JSON gateway as curl sees it: raw HTTP, written down with status, content type and body.

Bodies are compared as JSON in one form; what the server chose (IDs, terms, indexes, sizes, versions) is
hidden and revisions are relative to the beginning of the case, as in target.py.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable
from typing import Any

import requests

from tests.conformance.target import Exchange, Target

LIMIT_S = 10.0
_HIDDEN = frozenset(
    {
        "cluster_id",
        "member_id",
        "memberID",
        "raft_term",
        "leader",
        "raftIndex",
        "raftTerm",
        "raftAppliedIndex",
        "dbSize",
        "dbSizeInUse",
        "etcdserver",
        "etcdcluster",
        "storage",
    }
)
_DROPPED = frozenset({"storageVersion", "dbSizeQuota", "downgradeInfo", "details"})


def text64(value: str | bytes) -> str:
    """A key or value in base64."""
    return b64encode(value.encode() if isinstance(value, str) else value).decode()


def pretty(document: object) -> str:
    """JSON in one form, for comparison."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


class Gateway:
    """One server's HTTP face; `rev` as in Target."""

    def __init__(self, url: str, target: Target) -> None:
        self._url = url
        self._target = target
        self._session = requests.Session()
        self._session.trust_env = False
        self.transcript: list[Exchange] = []
        self.last_lease = "0"
        self._chosen: dict[str, str] = {}

    def begin(self) -> None:
        self._target.begin()
        self.transcript = []
        self._chosen = {}

    def close(self) -> None:
        self._session.close()

    def rev(self, offset: int) -> int:
        return self._target.rev(offset)

    def post(self, path: str, body: Any = None, **options: Any) -> Any:
        """POSTs `body` (a document, or text to be sent as it is)."""
        content = body if isinstance(body, str) else json.dumps({} if body is None else body)
        return self.send("POST", path, content, **options)

    def send(
        self,
        method: str,
        path: str,
        content: str = "",
        *,
        headers: dict[str, str] | None = None,
        body_too: bool = True,
    ) -> Any:
        """Sends a request and writes it down; with `body_too` false only the status and, if any, the code."""
        answer = self._session.request(
            method, self._url + path, data=content, headers=headers, timeout=LIMIT_S, allow_redirects=False
        )
        document = self._document(answer.text)
        if path.endswith("lease/grant") and isinstance(document, dict) and '"ID"' not in content:
            self.last_lease = document.get("ID", "0")
            self._chosen[self.last_lease] = f"<lease {len(self._chosen) + 1}>"
        kind = answer.headers.get("Content-Type", "").partition(";")[0]
        told = pretty(self._hide(document)) if body_too else f"code {_code(document)}"
        allow = f" allow {answer.headers['Allow']}" if "Allow" in answer.headers else ""
        self._note(
            f"{method} {path} {self._request_text(content)}", f"{answer.status_code} {kind}{allow} {told}"
        )
        return document

    def stream(
        self, path: str, body: Any, lines: int, *, meanwhile: Callable[[], object] | None = None
    ) -> None:
        """POSTs `body` and writes down the first `lines` lines; `meanwhile` runs after the first one."""
        content = json.dumps(body)
        with self._session.post(self._url + path, data=content, stream=True, timeout=LIMIT_S) as answer:
            kind = answer.headers.get("Content-Type", "").partition(";")[0]
            told = [f"{answer.status_code} {kind}"]
            incoming = answer.iter_lines(chunk_size=1)
            for number in range(lines):
                line = next(incoming, b"(end)").decode()
                told.append(pretty(self._hide(self._document(line))))
                if number == 0 and meanwhile is not None:
                    meanwhile()
        self._note(f"STREAM {path} {self._request_text(content)}", "\n    ".join(told))

    def _note(self, request: str, answer: str) -> None:
        self.transcript.append(Exchange(request, answer))

    def _request_text(self, content: str) -> str:
        document = self._document(content)
        return pretty(self._hide(document)) if isinstance(document, dict) else content

    def _document(self, text: str) -> Any:
        try:
            return json.loads(text)
        except ValueError:
            return text

    def _hide(self, document: Any) -> Any:
        if isinstance(document, list):
            return [self._hide(each) for each in document]
        if not isinstance(document, dict):
            return document
        return {
            name: self._hide_field(name, field) for name, field in document.items() if name not in _DROPPED
        }

    def _hide_field(self, name: str, field: Any) -> Any:
        if name in _HIDDEN or (name == "version" and isinstance(field, str) and "." in field):
            return "*"
        if name.endswith("revision") and str(field).lstrip("-").isdigit() and int(field) > 0:
            relative = f"base{int(field) - self._target.base:+d}"
            return relative if isinstance(field, str) else [relative]
        if name in ("ID", "lease"):
            return self._chosen.get(str(field), field if len(str(field)) < 10 else "*")
        if name == "TTL" and str(field) in ("59", "58"):
            return "60"
        if name in ("peerURLs", "clientURLs"):
            return len(field)
        return self._hide(field)


def _code(document: Any) -> Any:
    return document.get("code") if isinstance(document, dict) else document
