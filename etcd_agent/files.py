"""Every change that the agent makes to a file system, as small durable steps.

A destination is replaced as a whole: a temporary file beside it (0600, and invisible to ``*.conf``), content,
owner, mode, SELinux label, fsync, rename, fsync of the directory. So a reader sees the old file or the new
one, and a power cut cannot tear it. A symlink is followed: its target is replaced and the link stays. Before
each step that changes something ``step`` is called; tests stop the world there.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat

from etcd_agent.errors import FilesError
from etcd_agent.values import FileState

_LABEL = "security.selinux"
_TEMPORARY_SUFFIX = ".etcd-py-agent"


def temporary_path(path: str) -> str:
    """Where the new content of ``path`` waits for its rename; one writer, so one name."""
    directory, name = os.path.split(path)
    return os.path.join(directory, f".{name}{_TEMPORARY_SUFFIX}")


class FileSystem:
    """The real file system. All methods raise FilesError: one line with the path and the reason."""

    def step(self, what: str, path: str) -> None:
        """Called before each change: ``what`` names it."""

    def read(self, path: str) -> FileState | None:
        """The regular file at ``path`` (symlinks are followed), or None if there is none."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise FilesError(f"{path}: cannot be read: {error.strerror}") from error
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise FilesError(f"{path}: not a regular file")
            return FileState(file.read(), stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)

    def write(self, path: str, state: FileState) -> None:
        """Replace or create ``path`` atomically and durably."""
        self.prepare(path, state)
        self.commit(path)

    def prepare(self, path: str, state: FileState) -> None:
        """Put the new file beside ``path``, whole and synced. What can go wrong mostly goes wrong here."""
        target = os.path.realpath(path)
        try:
            self._write_temporary(temporary_path(target), state, _label(target))
        except OSError as error:
            raise FilesError(f"{path}: cannot be written: {error.strerror}") from error

    def commit(self, path: str) -> None:
        """Rename the prepared file over ``path``, durably."""
        target = os.path.realpath(path)
        try:
            self.step("rename", target)
            os.rename(temporary_path(target), target)
            self._sync_directory(os.path.dirname(target))
        except OSError as error:
            hint = " (a bind-mounted file? mount its directory instead)" if error.errno == errno.EBUSY else ""
            raise FilesError(f"{path}: cannot be replaced: {error.strerror}{hint}") from error

    def _write_temporary(self, temporary: str, state: FileState, label: bytes | None) -> None:
        self.step("discard", temporary)
        _unlink(temporary)
        self.step("create", temporary)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            self.step("write", temporary)
            file.write(state.content)
            file.flush()
            status = os.fstat(file.fileno())
            if (status.st_uid, status.st_gid) != (state.uid, state.gid):
                self.step("chown", temporary)
                os.fchown(file.fileno(), state.uid, state.gid)
            self.step("chmod", temporary)
            os.fchmod(file.fileno(), state.mode)
            if label is not None:
                self.step("label", temporary)
                os.setxattr(file.fileno(), _LABEL, label)
            self.step("sync", temporary)
            os.fsync(file.fileno())

    def write_private(self, path: str, content: bytes) -> None:
        """As ``write``, for a file of the agent's own state: mode 0600, the agent's owner."""
        self.write(path, FileState(content, 0o600, os.geteuid(), os.getegid()))

    def remove(self, path: str) -> None:
        """Remove a file durably; one that is not there is no error."""
        try:
            self.step("remove", path)
            _unlink(path)
            self._sync_directory(os.path.dirname(path))
        except OSError as error:
            raise FilesError(f"{path}: cannot be removed: {error.strerror}") from error

    def write_new(self, path: str, content: bytes, *, durable: bool) -> None:
        """Create a private file (0600) in a directory of the agent's own; ``durable`` syncs it."""
        try:
            self.step("create", path)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
                self.step("write", path)
                file.write(content)
                file.flush()
                if durable:
                    self.step("sync", path)
                    os.fsync(file.fileno())
        except OSError as error:
            raise FilesError(f"{path}: cannot be written: {error.strerror}") from error

    def make_directory(self, path: str) -> None:
        """A private directory (0700), its missing parents too; one that is there is no error."""
        missing: list[str] = []
        while not os.path.isdir(path):
            missing.append(path)
            path = os.path.dirname(path)
        try:
            for each in reversed(missing):
                self.step("mkdir", each)
                os.mkdir(each, 0o700)
                self._sync_directory(os.path.dirname(each))
        except OSError as error:
            raise FilesError(f"{missing[0]}: cannot be made: {error.strerror}") from error

    def replace_directory(self, source: str, path: str) -> None:
        """Put the directory ``source`` at ``path``, durably, in place of what was there."""
        self.remove_directory(path)
        try:
            self._sync_directory(source)
            self.step("rename", path)
            os.rename(source, path)
            self._sync_directory(os.path.dirname(path))
        except OSError as error:
            raise FilesError(f"{path}: cannot be replaced: {error.strerror}") from error

    def remove_directory(self, path: str) -> None:
        """Remove a directory of the agent's own with all that is in it; one that is not there is no error."""
        try:
            self.step("rmtree", path)
            shutil.rmtree(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise FilesError(f"{path}: cannot be removed: {error.strerror}") from error

    def _sync_directory(self, path: str) -> None:
        self.step("sync directory", path)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def _label(path: str) -> bytes | None:
    """The SELinux label of the file that will be replaced; None without SELinux or without the file."""
    try:
        return os.getxattr(path, _LABEL)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODATA, errno.ENOTSUP, errno.EOPNOTSUPP):
            return None
        raise FilesError(f"{path}: its security label cannot be read: {error.strerror}") from error
