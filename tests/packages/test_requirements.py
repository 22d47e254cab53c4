"""What the packages bring along is what the project depends on: nothing is missing, and each has hashes."""

from __future__ import annotations

import re
import tomllib

from tests.markdown import ROOT, read

NAME = re.compile(r"^[A-Za-z0-9._-]+")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned() -> dict[str, str]:
    """{name: what follows it, its version and hashes}."""
    entries = re.split(r"\n(?=\S)", read("packaging/rpm/requirements.txt").strip())
    return {normal(entry.partition("==")[0]): entry for entry in entries}


def test_every_dependency_is_pinned() -> None:
    """`packaging/rpm/relock.sh` pins anew, after a change of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {normal(found[0]) for each in project["dependencies"] if (found := NAME.match(each))}
    assert needed - pinned().keys() == set()


def test_every_pin_has_hashes() -> None:
    for name, entry in pinned().items():
        assert re.search(r"==\S+ \\\n    --hash=sha256:[0-9a-f]{64}", entry), name
