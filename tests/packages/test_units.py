"""The units as they stand in the tree: systemd understands all of them, and how much they are confined."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNITS = tuple(sorted(path for path in (ROOT / "systemd").iterdir() if path.suffix in (".service", ".timer")))
EXPOSURE = {"etcd-py.service": 1.6, "etcd-py-agent.service": 2.5, "etcd-py-agent@.service": 2.5}
"""At most this, of 10, by systemd-analyze security."""

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")


def analyze(*arguments: str) -> str:
    done = subprocess.run(
        ["systemd-analyze", "--no-pager", *arguments], capture_output=True, text=True, timeout=30, check=False
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_systemd_understands(unit: Path, tmp_path: Path) -> None:
    """Silent, but for programs that are not installed here."""
    text = re.sub(r"=/usr/bin/etcd-py\S*", "=/bin/true", unit.read_text())
    copy = tmp_path / unit.name
    copy.write_text(text)
    assert analyze("--recursive-errors=no", "--man=no", "verify", str(copy)) == ""


@pytest.mark.parametrize("name", EXPOSURE)
def test_exposure(name: str) -> None:
    said = analyze("security", "--offline=true", str(ROOT / "systemd" / name))
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
    assert found is not None, said
    assert float(found[1]) <= EXPOSURE[name]


def test_agents_differ_in_their_names_alone() -> None:
    """The unit for one agent of a host and that for one of several."""
    one, several = (
        (ROOT / "systemd" / name).read_text().partition("Restart=")[2]
        for name in ("etcd-py-agent.service", "etcd-py-agent@.service")
    )
    assert one == several
