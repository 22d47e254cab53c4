"""The fixture of these tests: a machine over real files."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.machine.machines import Lab


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A machine with an empty store."""
    lab = Lab(tmp_path)
    yield lab
    lab.machine.database.close()
