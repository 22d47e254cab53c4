"""A disk that loses power, fills up and fails to sync: a VFS of SQLite that acts from a seed.

The contents of files are held here, in memory. Each file has what programs see (`current`) and what would
survive (`durable`); the writes between the two are pending until a sync. A power cut ends the machine: from
then on every access fails. `restart` then decides for each pending write whether it is kept, dropped or torn
at a boundary of 512 bytes (in any order, as disks do), whether a truncation or an unsynced creation, deletion
or renaming of a file took place, and the disk works again with what came of it.

Locks and shared memory are the operating system's own, on empty files of the same names in a scratch
directory, so that several connections work as on any disk. Faults are set by counting accesses.

Nothing here knows what is stored. One disk serves one machine; use `with SimulatedDisk(...) as disk` and give
`disk.vfs_name` to whatever opens files by SQLite, at paths made by `disk.path`, and `disk.files` to what
handles whole files.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import apsw

from etcd_server.storage.errors import translated

SECTOR_SIZE_BYTES = 512
_numbers = itertools.count(1)


@dataclass(slots=True)
class _Pending:
    """A write of `data` at `offset`, or a truncation to `offset` when `data` is None."""

    offset: int
    data: bytes | None


@dataclass(slots=True)
class _File:
    current: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    pending: list[_Pending] = field(default_factory=list)
    # Whether a sync of the directory has made the creation of the file durable.
    is_created: bool = False

    def change(self, pending: _Pending) -> None:
        _perform(self.current, pending)
        self.pending.append(pending)

    def sync(self) -> None:
        for pending in self.pending:
            _perform(self.durable, pending)
        self.pending.clear()


def _perform(content: bytearray, pending: _Pending) -> None:
    if pending.data is None:
        del content[pending.offset :]
        content.extend(bytes(pending.offset - len(content)))
        return
    content.extend(bytes(max(0, pending.offset - len(content))))
    content[pending.offset : pending.offset + len(pending.data)] = pending.data


class SimulatedDisk:
    """See the module's docstring.

    operations, syncs: how many there have been. unsynced_lost: pending writes, or sectors of them, that cuts
    have dropped; unsynced_torn: writes of which a part was kept and a part was not.
    capacity_bytes: None, or what all files together may hold; a write beyond it fails as on a full disk.
    sync_fails_at: number of the sync (from 1) that fails, dropping what it should have written.
    syncs_lie: syncs report success and do nothing; for showing that a test would notice.
    """

    def __init__(self, seed: int, scratch: Path) -> None:
        self._random = random.Random(f"disk {seed}")
        self._scratch = scratch
        scratch.mkdir(exist_ok=True)
        self._files: dict[str, _File] = {}
        self._deleted: dict[str, _File] = {}
        # (old name, new name, what had the new name before), in order, since the directory was last synced.
        self._renamed: list[tuple[str, str, _File | None]] = []
        self.files = _SimulatedFiles(self)
        self._dies_at: int | None = None
        self.is_dead = False
        self.operations = 0
        self.syncs = 0
        self.unsynced_lost = 0
        self.unsynced_torn = 0
        self.capacity_bytes: int | None = None
        self.sync_fails_at: int | None = None
        self.syncs_lie = False
        self.vfs_name = f"simulated-{os.getpid()}-{next(_numbers)}"
        self._vfs = _Vfs(self, seed)
        # SQLite's own random numbers (the journal's salt) are drawn again, from the default VFS, after this.
        apsw.randomness(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._vfs.unregister()
        apsw.set_default_vfs("unix")

    def path(self, name: str) -> str:
        return str(self._scratch / name)

    def cut_power_within(self, operations: int) -> None:
        """The machine dies at one of the next `operations` accesses."""
        self._dies_at = self.operations + 1 + self._random.randrange(operations)

    def cut_power_at(self, operation: int) -> None:
        """The machine dies at access number `operation` (from 1)."""
        self._dies_at = operation

    def cut_power(self) -> None:
        """The machine dies now."""
        self.is_dead = True

    def restart(self) -> None:
        """Let the disk work again with what has survived. Every connection must have been closed."""
        keep = self._random.choice((0.0, 0.1, 0.5, 0.9, 1.0))
        self._undo_renames(keep)
        for name, file in [*self._files.items()]:
            if not file.is_created and self._random.random() >= keep:
                del self._files[name]
                continue
            self._settle(file, keep)
        for name, file in self._deleted.items():
            if name not in self._files and self._random.random() >= keep:
                self._files[name] = file
                self._settle(file, keep)
        self._deleted.clear()
        for entry in self._scratch.iterdir():
            entry.unlink()
        for name in self._files:
            Path(name).touch()
        self.is_dead = False
        self._dies_at = None

    def _undo_renames(self, keep: float) -> None:
        """A file system carries renames out in their order, so what is lost is the last of them."""
        kept = 0
        while kept < len(self._renamed) and self._random.random() < keep:
            kept += 1
        for source, target, replaced in reversed(self._renamed[kept:]):
            if (file := self._files.pop(target, None)) is not None:
                self._files[source] = file
            if replaced is not None:
                self._files[target] = replaced
        self._renamed.clear()

    def contents(self) -> dict[str, bytes]:
        """What each file holds for programs, by base name."""
        return {os.path.basename(name): bytes(file.current) for name, file in sorted(self._files.items())}

    def integrity_check(self, name: str) -> str:
        """What SQLite says of the file: "ok", or what is wrong with it."""
        connection = apsw.Connection(self.path(name), vfs=self.vfs_name)
        try:
            return "; ".join(str(row[0]) for row in connection.execute("PRAGMA integrity_check").fetchall())
        finally:
            connection.close()

    def flip_bit(self, name: str, offset: int) -> None:
        """Damage one bit of a file, as a bad disk would: nothing else notices."""
        file = self._files[self.path(name)]
        file.current[offset] ^= 1
        file.durable[offset] ^= 1

    def size_bytes(self, name: str) -> int:
        return len(self._files[self.path(name)].current)

    def _settle(self, file: _File, keep: float) -> None:
        for pending in file.pending:
            if pending.data is None:
                if self._random.random() < keep:
                    _perform(file.durable, pending)
                continue
            whole = self._random.random()
            if whole < keep / 2:
                _perform(file.durable, pending)
            elif whole < 0.5 + keep / 2:
                self._tear(file.durable, pending.offset, pending.data, keep)
            else:
                self.unsynced_lost += 1
        file.pending.clear()
        file.current = bytearray(file.durable)
        file.is_created = True

    def _tear(self, durable: bytearray, offset: int, data: bytes, keep: float) -> None:
        start, kept, lost = offset, 0, 0
        while start < offset + len(data):
            end = min(offset + len(data), (start // SECTOR_SIZE_BYTES + 1) * SECTOR_SIZE_BYTES)
            if self._random.random() < keep:
                _perform(durable, _Pending(start, data[start - offset : end - offset]))
                kept += 1
            else:
                lost += 1
            start = end
        self.unsynced_lost += lost
        self.unsynced_torn += bool(kept and lost)

    # What the VFS calls

    def operate(self, code: int) -> None:
        """Count an access; fail with SQLite's error `code` when the machine is dead or dies of this one."""
        if self.is_dead:
            raise apsw.exception_for(code)
        self.operations += 1
        if self._dies_at is not None and self.operations >= self._dies_at:
            self.is_dead = True
            raise apsw.exception_for(code)

    def open(self, name: str) -> _File:
        if name not in self._files:
            self.operate(apsw.SQLITE_CANTOPEN)
            self._files[name] = _File()
        return self._files[name]

    def exists(self, name: str) -> bool:
        return name in self._files

    def delete(self, name: str) -> None:
        self.operate(apsw.SQLITE_IOERR_DELETE)
        file = self._files.pop(name, None)
        if file is None:
            raise apsw.exception_for(apsw.SQLITE_IOERR_DELETE_NOENT)
        if file.is_created:
            self._deleted[name] = file

    def sync_directory(self) -> None:
        """Make durable which files there are."""
        self.operate(apsw.SQLITE_IOERR_DIR_FSYNC)
        self._deleted.clear()
        self._renamed.clear()
        for file in self._files.values():
            file.is_created = True

    def rename(self, source: str, target: str) -> None:
        self.operate(apsw.SQLITE_IOERR_WRITE)
        file = self._files.pop(source)
        self._renamed.append((source, target, self._files.get(target)))
        self._files[target] = file
        Path(source).unlink(missing_ok=True)
        Path(target).touch()

    def put(self, name: str, data: bytes) -> str:
        """A file that has arrived from elsewhere, all of it on the disk; its path."""
        path = self.path(name)
        self.files.write_synced(path, data)
        self._files[path].is_created = True
        return path

    def write(self, file: _File, data: bytes, offset: int) -> None:
        was_alive = not self.is_dead
        try:
            self.operate(apsw.SQLITE_IOERR_WRITE)
        except apsw.Error:
            if was_alive:
                # The power fails during this write: any part of it may be there.
                file.change(_Pending(offset, data))
            raise
        growth = max(0, offset + len(data) - len(file.current))
        if growth and self.capacity_bytes is not None:
            used = sum(len(other.current) for other in self._files.values())
            if used + growth > self.capacity_bytes:
                raise apsw.exception_for(apsw.SQLITE_FULL)
        file.change(_Pending(offset, data))

    def truncate(self, file: _File, size_bytes: int) -> None:
        self.operate(apsw.SQLITE_IOERR_TRUNCATE)
        file.change(_Pending(size_bytes, None))

    def sync(self, file: _File) -> None:
        was_alive = not self.is_dead
        try:
            self.operate(apsw.SQLITE_IOERR_FSYNC)
        except apsw.Error:
            if was_alive and self._random.random() < 0.5:
                file.sync()  # the power fails just after the sync, before anybody could be told
            raise
        self.syncs += 1
        if self.sync_fails_at == self.syncs:
            # As Linux does: the pages count as clean afterwards, whether they got anywhere or not.
            file.pending.clear()
            raise apsw.exception_for(apsw.SQLITE_IOERR_FSYNC)
        if not self.syncs_lie:
            file.sync()


class _SimulatedFiles:
    """The disk as `etcd_server.storage.filesystem` wants it: what the member does without SQLite."""

    def __init__(self, disk: SimulatedDisk) -> None:
        self._disk = disk

    def exists(self, path: str) -> bool:
        return self._disk.exists(path)

    def chunks(self, path: str) -> Iterator[bytes]:
        with translated(path):
            self._disk.operate(apsw.SQLITE_IOERR_READ)
            yield bytes(self._disk.open(path).current)

    def write_synced(self, path: str, data: bytes) -> None:
        with translated(path):
            file = self._disk.open(path)
            Path(path).touch()
            self._disk.truncate(file, 0)
            self._disk.write(file, data, 0)
            self._disk.sync(file)

    def rename(self, source: str, target: str) -> None:
        with translated(target):
            self._disk.rename(source, target)

    def remove(self, path: str) -> None:
        with translated(path):
            if self._disk.exists(path):
                self._disk.delete(path)
                Path(path).unlink(missing_ok=True)

    def sync_directory(self, path: str) -> None:
        with translated(path):
            self._disk.sync_directory()


class _Vfs(apsw.VFS):
    """The unix VFS, but for the contents and the names of files, and for what is not deterministic."""

    def __init__(self, disk: SimulatedDisk, seed: int) -> None:
        super().__init__(disk.vfs_name, "unix", makedefault=True)
        self._disk = disk
        self._random = random.Random(f"sqlite {seed}")
        self._now_ms = 2_460_000 * 86_400_000  # a Julian day, as SQLite counts

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        if name is None:
            return apsw.VFSFile("unix", name, flags)
        return _OpenFile(self._disk, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        self._disk.delete(filename)
        if syncdir:
            self._disk.sync_directory()
        super().xDelete(filename, False)

    def xAccess(self, pathname: str, flags: int) -> bool:
        return self._disk.exists(pathname)

    def xRandomness(self, nbyte: int) -> bytes:
        return self._random.randbytes(nbyte)

    def xSleep(self, microseconds: int) -> int:
        return microseconds

    def xCurrentTimeInt64(self) -> int:
        self._now_ms += 1
        return self._now_ms


# The unix VFS syncs the directory at the first sync of such a file.
_JOURNALS = apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_SUPER_JOURNAL | apsw.SQLITE_OPEN_WAL


class _OpenFile(apsw.VFSFile):
    """A file whose content is the disk's, and whose locks are those of the empty file of that name."""

    def __init__(self, disk: SimulatedDisk, name: str | apsw.URIFilename, flags: list[int]) -> None:
        self._disk = disk
        self._file = disk.open(name if isinstance(name, str) else name.filename())
        self._syncs_directory = bool(flags[0] & apsw.SQLITE_OPEN_CREATE and flags[0] & _JOURNALS)
        super().__init__("unix", name, flags)

    def xRead(self, amount: int, offset: int) -> bytes:
        self._disk.operate(apsw.SQLITE_IOERR_READ)
        return bytes(self._file.current[offset : offset + amount])

    def xWrite(self, data: bytes, offset: int) -> None:
        self._disk.write(self._file, bytes(data), offset)

    def xTruncate(self, newsize: int) -> None:
        self._disk.truncate(self._file, newsize)

    def xSync(self, flags: int) -> None:
        self._disk.sync(self._file)
        if self._syncs_directory:
            self._disk.sync_directory()
            self._syncs_directory = False

    def xFileSize(self) -> int:
        return len(self._file.current)

    def xSectorSize(self) -> int:
        return 4096

    def xDeviceCharacteristics(self) -> int:
        return apsw.SQLITE_IOCAP_POWERSAFE_OVERWRITE
