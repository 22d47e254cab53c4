"""One laboratory of servers for all conformance tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance.lab import Lab


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(tmp_path_factory.mktemp("servers"))
    yield made
    made.close()
