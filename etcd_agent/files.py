"""Every change that the agent makes to a file system, as small durable steps.

A destination is replaced as a whole: a temporary file beside it (0600, and invisible to ``*.conf``), content,
owner, extended attributes (the SELinux label and the ACL of the file that it replaces), mode, fsync, rename,
fsync of the directory. So a reader sees the old file or the new one, and a power cut cannot tear it. A
symlink is followed: its target is replaced and the link stays. ``step`` is called before each system call
that changes anything, and before nothing else: between two of them a kill leaves the same disk, so a test
that stops the world at every step has stopped it everywhere.
"""

from __future__ import annotations

import errno
import logging
import os
import stat

from etcd_agent.errors import FilesError
from etcd_agent.values import FileState

logger = logging.getLogger(__name__)

_TEMPORARY_SUFFIX = ".etcd-py-agent"
_LABEL = "security.selinux"
# What belongs to a name, not to its content: labels, the ACL, a user's own. (Not capabilities, not IMA.)
_KEPT_ATTRIBUTES = (_LABEL, "security.SMACK64", "system.posix_acl_access")
_KEPT_PREFIX = "user."


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

    def names(self, path: str) -> list[str]:
        """What is in a directory of the agent's own; nothing if it is not there."""
        try:
            return os.listdir(path)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise FilesError(f"{path}: cannot be read: {error.strerror}") from error

    def attributes(self, path: str) -> dict[str, bytes]:
        """The extended attributes that the next file at ``path`` shall have, too; none without a file."""
        try:
            names = os.listxattr(path)
            return {
                name: os.getxattr(path, name)
                for name in names
                if name in _KEPT_ATTRIBUTES or name.startswith(_KEPT_PREFIX)
            }
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODATA, errno.ENOTSUP, errno.EOPNOTSUPP):
                return {}
            raise FilesError(f"{path}: its attributes cannot be read: {error.strerror}") from error

    def write(self, path: str, state: FileState, *, in_place: bool = False) -> None:
        """Replace or create ``path`` atomically and durably; ``in_place`` as for ``commit``."""
        self.prepare(path, state)
        self.commit(path, state, in_place=in_place)

    def prepare(self, path: str, state: FileState) -> None:
        """Put the new file beside ``path``, whole and synced. What can go wrong mostly goes wrong here."""
        target = os.path.realpath(path)
        attributes = dict(state.attributes) or self.attributes(target)
        try:
            self._write_temporary(temporary_path(target), state, attributes)
        except OSError as error:
            raise FilesError(f"{path}: cannot be written: {error.strerror}") from error

    def commit(self, path: str, state: FileState, *, in_place: bool = False) -> None:
        """Rename the prepared file over ``path``, durably.

        With ``in_place`` a file that cannot be renamed over (a bind mount of the file alone: EBUSY) is
        overwritten instead. A reader may then see half of it.
        """
        target = os.path.realpath(path)
        try:
            self.step("rename", target)
            os.rename(temporary_path(target), target)
            self._sync_directory(os.path.dirname(target))
        except OSError as error:
            if error.errno == errno.EBUSY and in_place:
                logger.warning("%s: is a mount point; overwriting it in place, which is not atomic", path)
                self._overwrite(target, state)
                return
            hint = ""
            if error.errno == errno.EBUSY:
                hint = " (a bind-mounted file: mount its directory instead, or set in_place = true)"
            raise FilesError(f"{path}: cannot be replaced: {error.strerror}{hint}") from error

    def _overwrite(self, target: str, state: FileState) -> None:
        try:
            descriptor = os.open(target, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            with os.fdopen(descriptor, "wb") as file:
                self.step("overwrite", target)
                file.write(state.content)
                file.flush()
                self.step("truncate", target)
                os.ftruncate(file.fileno(), len(state.content))
                self._set_owner(file.fileno(), target, state)
                self._sync(file.fileno(), target)
            self.discard(target)
        except OSError as error:
            raise FilesError(f"{target}: cannot be overwritten: {error.strerror}") from error

    def _write_temporary(self, temporary: str, state: FileState, attributes: dict[str, bytes]) -> None:
        self._unlink(temporary)
        self.step("create", temporary)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            self._write(file.fileno(), temporary, state.content)
            for name, value in attributes.items():
                self._set_attribute(file.fileno(), temporary, name, value)
            self._set_owner(file.fileno(), temporary, state)
            self._sync(file.fileno(), temporary)

    def _write(self, descriptor: int, path: str, content: bytes) -> None:
        rest = memoryview(content)
        while rest:
            self.step("write", path)
            rest = rest[os.write(descriptor, rest) :]

    def _set_owner(self, descriptor: int, path: str, state: FileState) -> None:
        """Owner before mode: a change of owner clears the set-user-id bit."""
        status = os.fstat(descriptor)
        if (status.st_uid, status.st_gid) != (state.uid, state.gid):
            self.step("chown", path)
            os.fchown(descriptor, state.uid, state.gid)
        if stat.S_IMODE(os.fstat(descriptor).st_mode) != state.mode:
            self.step("chmod", path)
            os.fchmod(descriptor, state.mode)

    def _set_attribute(self, descriptor: int, path: str, name: str, value: bytes) -> None:
        self.step("attribute", path)
        try:
            os.setxattr(descriptor, name, value)
        except OSError as error:
            if name == _LABEL or error.errno not in (errno.EPERM, errno.EACCES, errno.ENOTSUP):
                raise
            logger.debug("%s: attribute %s cannot be kept: %s", path, name, error.strerror)

    def _sync(self, descriptor: int, path: str) -> None:
        self.step("sync", path)
        os.fsync(descriptor)

    def write_private(self, path: str, content: bytes) -> None:
        """As ``write``, for a file of the agent's own state: mode 0600, the agent's owner."""
        self.write(path, FileState(content, 0o600, os.geteuid(), os.getegid()))

    def remove(self, path: str) -> None:
        """Remove a file durably; one that is not there is no error."""
        try:
            if self._unlink(path):
                self._sync_directory(os.path.dirname(path))
        except OSError as error:
            raise FilesError(f"{path}: cannot be removed: {error.strerror}") from error

    def discard(self, path: str) -> None:
        """Remove what a swap that was given up has left beside ``path``."""
        self.remove(temporary_path(os.path.realpath(path)))

    def _unlink(self, path: str) -> bool:
        if not os.path.lexists(path):
            return False
        self.step("unlink", path)
        os.unlink(path)
        return True

    def write_new(self, path: str, content: bytes, *, durable: bool) -> None:
        """Create a private file (0600) in a directory of the agent's own; ``durable`` syncs it."""
        try:
            self.step("create", path)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(path, flags, 0o600)
            try:
                self._write(descriptor, path, content)
                if durable:
                    self._sync(descriptor, path)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise FilesError(f"{path}: cannot be written: {error.strerror}") from error

    def make_directory(self, path: str, mode: int = 0o700) -> None:
        """A directory (private unless ``mode`` says otherwise), its missing parents too; one that is there
        is no error.
        """
        missing: list[str] = []
        while not os.path.isdir(path):
            missing.append(path)
            path = os.path.dirname(path)
        try:
            for each in reversed(missing):
                self.step("mkdir", each)
                os.mkdir(each, mode)
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
            for directory, _, names in os.walk(path, topdown=False):
                for name in names:
                    self._unlink(os.path.join(directory, name))
                self.step("rmdir", directory)
                os.rmdir(directory)
        except OSError as error:
            raise FilesError(f"{path}: cannot be removed: {error.strerror}") from error

    def _sync_directory(self, path: str) -> None:
        self.step("sync directory", path)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
