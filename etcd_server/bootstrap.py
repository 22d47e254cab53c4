"""How a cluster begins: who its first members are, their ids, and the entries that its log starts with.

Every first member computes the same from the same flags (etcd: server/etcdserver/bootstrap.go,
server/etcdserver/api/membership/cluster.go). Afterwards the membership is in the state, and a member knows
itself by the file `identity` in its data directory: flags that would compute another id have no effect
then, as in etcd, which keeps the ids in the head of its log.

A member that joins a running cluster asks its members instead (`joining.py`).
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from etcd_server import flag_values
from etcd_server.api.proto import command_pb2, rpc_pb2
from etcd_server.config import Config, ConfigError
from etcd_server.machine.members import cluster_id, member_id
from etcd_server.raft.messages import Entry, EntryKind

log = logging.getLogger("etcd_server")

IDENTITY_FILE = "identity"
RESOLVE_LIMIT_S = 30.0
RESOLVE_INTERVAL_S = 1.0

Resolve = Callable[[str], str]
"""The address of a host. Raises OSError."""


class BootstrapError(ConfigError):
    """The flags and the data directory do not make a member; the text is one line."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a member is, in which cluster: unsigned 64-bit numbers that never change."""

    member_id: int
    cluster_id: int

    def to_text(self) -> str:
        return f"member {self.member_id:016x}\ncluster {self.cluster_id:016x}\n"

    @classmethod
    def from_text(cls, text: str) -> Identity:
        """Raises ValueError."""
        match text.split():
            case ["member", member, "cluster", cluster] if len(member) == len(cluster) == 16:
                return cls(int(member, 16), int(cluster, 16))
        raise ValueError(f"expected the lines 'member ID' and 'cluster ID', found {text[:60]!r}")


@dataclass(frozen=True, slots=True)
class FirstEntries:
    """What the log of a new cluster begins with: committed from the start, as all first members agree."""

    identity: Identity
    entries: tuple[Entry, ...]

    @property
    def member_id(self) -> int:
        return self.identity.member_id

    @property
    def cluster_id(self) -> int:
        return self.identity.cluster_id


def parse_initial_cluster(text: str) -> dict[str, tuple[str, ...]]:
    """{member name: its peer URLs, sorted} of "a=http://1.1.1.1:2380,a=http://2.2.2.2:2380,b=...".

    Raises BootstrapError.
    """
    found: dict[str, set[str]] = {}
    for pair in text.split(","):
        name, separator, url = pair.strip().partition("=")
        if not pair.strip():
            continue
        if not separator or not name:
            raise BootstrapError(f'--initial-cluster: expected name=URL, found "{pair.strip()}"')
        try:
            found.setdefault(name, set()).add(flag_values.url(url.strip()))
        except ValueError as error:
            raise BootstrapError(f"--initial-cluster: member {name}: {error}") from None
    return {name: tuple(sorted(urls)) for name, urls in found.items()}


def first_entries(config: Config, resolve: Resolve | None = None) -> FirstEntries:
    """The beginning of the cluster that the flags describe. Raises BootstrapError.

    resolve: by which names of hosts are compared when the URLs of the flags are written differently.
    """
    members = parse_initial_cluster(config.initial_cluster)
    check_members(config, members)
    _check_advertised(config, members[config.name], resolve or resolve_host)
    ids = {name: member_id(urls, config.initial_cluster_token) for name, urls in members.items()}
    entries = [
        Entry(
            index=position,
            term=1,
            kind=EntryKind.CONF_CHANGE,
            data=command_pb2.ConfChange(
                kind=command_pb2.ConfChange.ADD_VOTER,
                member=rpc_pb2.Member(ID=ids[name], name=name, peerURLs=members[name]),
            ).SerializeToString(deterministic=True),
        )
        for position, name in enumerate(sorted(members, key=ids.__getitem__), start=1)
    ]
    return FirstEntries(Identity(ids[config.name], cluster_id(ids.values())), tuple(entries))


def check_members(config: Config, members: dict[str, tuple[str, ...]]) -> None:
    """What must hold for the first members and for those that join: the member is among those that
    --initial-cluster names, and no URL is there twice (etcd: server/config/config.go). Raises
    BootstrapError."""
    if config.name not in members:
        raise BootstrapError(
            f'couldn\'t find local name "{config.name}" in the initial cluster configuration '
            f"(--initial-cluster {config.initial_cluster})"
        )
    urls = [url for member_urls in members.values() for url in member_urls]
    if len(set(urls)) != len(urls):
        raise BootstrapError(f"initial cluster {config.initial_cluster} has duplicate url")


def _check_advertised(config: Config, own: tuple[str, ...], resolve: Resolve) -> None:
    """The flags say the same of this member's peer URLs, be it by another name of the same host (etcd:
    advertiseMatchesCluster)."""
    advertised = config.initial_advertise_peer_urls
    if set(own) == set(advertised):
        return
    missing = [f"{config.name}={url}" for url in own if url not in advertised]
    added = [url for url in advertised if url not in own]
    if len(missing) == len(added):
        try:
            if _resolved(own, resolve) == _resolved(advertised, resolve):
                return
        except OSError as error:
            raise BootstrapError(
                f"failed to resolve {','.join(advertised)} to match "
                f"--initial-cluster={config.initial_cluster} ({error.strerror})"
            ) from None
    if missing:
        raise BootstrapError(
            f"--initial-cluster has {','.join(missing)} but missing from "
            f"--initial-advertise-peer-urls={','.join(advertised)}"
        )
    raise BootstrapError(
        f"--initial-advertise-peer-urls has {','.join(added)} but missing from "
        f"--initial-cluster={config.initial_cluster}"
    )


def _resolved(urls: Iterable[str], resolve: Resolve) -> list[tuple[str, str]]:
    """(scheme, address) of each URL; "localhost" and paths of sockets are left as they are, as in etcd."""
    found = []
    for url in urls:
        parts = urlsplit(url)
        host, _, port = parts.netloc.rpartition(":")
        is_name = not flag_values.is_socket_path(url) and host != "localhost"
        address = f"{resolve(host.strip('[]'))}:{port}" if is_name else parts.netloc + parts.path
        found.append((parts.scheme, address))
    return sorted(found)


def resolve_host(name: str) -> str:
    """The first address of a host. A name that is not known yet may become known soon, so it is asked for
    again for a while. Raises OSError."""
    deadline_s = time.monotonic() + RESOLVE_LIMIT_S
    while True:
        try:
            return str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])
        except OSError as error:
            if time.monotonic() + RESOLVE_INTERVAL_S > deadline_s:
                raise OSError(error.errno, f"{name}: {error.strerror}") from error
            log.warning("failed to resolve URL Host", extra={"host": name, "error": error.strerror})
            time.sleep(RESOLVE_INTERVAL_S)


def is_new(data_dir: str | os.PathLike[str]) -> bool:
    """Whether no member has ever been begun in this directory."""
    return not os.path.exists(os.path.join(data_dir, IDENTITY_FILE))


def read_identity(data_dir: str | os.PathLike[str]) -> Identity | None:
    """Who the member of this directory is; None in a new one. Raises BootstrapError."""
    path = Path(data_dir) / IDENTITY_FILE
    try:
        return Identity.from_text(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BootstrapError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise BootstrapError(f"{path}: damaged: {error}") from error


def write_identity(data_dir: str | os.PathLike[str], identity: Identity) -> None:
    """Make the member known, durably: the file is there whole or not at all. Raises OSError."""
    path = Path(data_dir) / IDENTITY_FILE
    temporary = path.with_name(IDENTITY_FILE + ".new")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(identity.to_text())
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
