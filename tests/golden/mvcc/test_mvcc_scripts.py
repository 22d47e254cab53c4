"""Runs the mvcc scripts of this folder; interaction.py lists their commands."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.golden import datadriven
from tests.golden.mvcc.interaction import Interaction


@pytest.mark.parametrize("path", datadriven.scripts(Path(__file__).parent), ids=lambda path: path.stem)
def test_mvcc_script(path: Path, golden: Callable[[Path, datadriven.Handler], None], tmp_path: Path) -> None:
    interaction = Interaction(tmp_path)
    golden(path, interaction.handle)
    interaction.close()
