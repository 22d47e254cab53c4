"""The data directory: made carefully, used by one, and never somebody else's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from etcd_server.storage.datadir import FORMAT, DataDirectory
from etcd_server.storage.errors import DirectoryInUse, DiskFailed, UnknownFormat
from etcd_server.storage.reserve import Reserve


def test_a_new_directory_is_private_and_complete(tmp_path: Path) -> None:
    directory = DataDirectory.open(tmp_path / "a" / "b" / "data")
    assert directory.path.stat().st_mode & 0o777 == 0o700
    assert (directory.path / "format").read_text() == FORMAT
    assert directory.raft_log_path == str(tmp_path / "a/b/data/raft.db")
    assert directory.free_size_bytes() > 0
    directory.close()
    DataDirectory.open(directory.path).close()


def test_an_empty_directory_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "lock").touch()
    (tmp_path / "format.new").touch()  # of a creation that was cut short
    DataDirectory.open(tmp_path).close()
    assert (tmp_path / "format").read_text() == FORMAT


def test_one_process_at_a_time(tmp_path: Path) -> None:
    directory = DataDirectory.open(tmp_path)
    again = "from etcd_server.storage.datadir import *; import sys; DataDirectory.{}(sys.argv[1])"
    for how in ("open", "open_offline"):
        with pytest.raises(DirectoryInUse, match="in use by another process; stop that one first"):
            getattr(DataDirectory, how)(tmp_path)
        done = subprocess.run(
            [sys.executable, "-c", again.format(how), str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert "DirectoryInUse" in done.stderr
    directory.close()
    first, second = DataDirectory.open_offline(tmp_path), DataDirectory.open_offline(tmp_path)
    with pytest.raises(DirectoryInUse):
        DataDirectory.open(tmp_path)
    first.close()
    second.close()
    DataDirectory.open(tmp_path).close()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("member/snap/db", "the data directory of an etcd"),
        ("report.txt", "holds 'report.txt'"),
        ("format", "not of etcd-py"),
    ],
)
def test_what_is_not_ours_is_left_alone(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("theirs\n")
    before = sorted(tmp_path.rglob("*"))
    for how in (DataDirectory.open, DataDirectory.open_offline):
        with pytest.raises(UnknownFormat, match=why) as problem:
            how(tmp_path)
        assert "\n" not in str(problem.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "format").write_text(FORMAT.replace("1", "2"))
    with pytest.raises(UnknownFormat, match="of a newer version of etcd-py"):
        DataDirectory.open(tmp_path)


def test_what_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskFailed, match="Not a directory"):
        DataDirectory.open(tmp_path / "file" / "data")
    with pytest.raises(DiskFailed, match="No such file"):
        DataDirectory.open_offline(tmp_path / "missing")
    with pytest.raises(UnknownFormat, match="not a data directory of etcd-py"):
        (tmp_path / "empty").mkdir()
        DataDirectory.open_offline(tmp_path / "empty")


def test_the_reserve_holds_real_room(tmp_path: Path) -> None:
    reserve = Reserve.open(str(tmp_path / "reserve"))
    assert reserve.held
    assert os.stat(reserve.path).st_blocks * 512 >= reserve.size_bytes
    reserve.give_up()
    reserve.give_up()
    assert not reserve.held
    assert os.stat(reserve.path).st_blocks == 0
    assert reserve.take()
    assert reserve.take()
    assert Reserve.open(reserve.path).held
