"""What rpmlint says of the packages: nothing but what its settings give a reason to pass over."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.skipif(shutil.which("rpmlint") is None, reason="there is no rpmlint")
def test_rpmlint(repository: Path) -> None:
    done = subprocess.run(
        ["rpmlint", "-c", ROOT / "packaging/rpm/rpmlint.toml", *repository.glob("*.rpm")],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert ": E: " not in done.stdout and ": W: " not in done.stdout, done.stdout
    assert "0 errors, 0 warnings" in done.stdout, done.stdout
    assert done.returncode == 0, done.stdout
