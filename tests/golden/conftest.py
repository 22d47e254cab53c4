"""The switch and the fixture of the golden scripts."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.golden import datadriven


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite", action="store_true", help="write the golden scripts' output anew")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[Path, datadriven.Handler], None]:
    """Runs one script with a handler: `golden(path, handler)`."""
    rewrite = (
        bool(request.config.getoption("--rewrite", default=False)) or os.environ.get("GOLDEN_REWRITE") == "1"
    )

    def run(path: Path, handler: datadriven.Handler) -> None:
        datadriven.run(path, handler, rewrite)

    return run
