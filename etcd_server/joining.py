"""How a member finds its place in a cluster that runs: it asks the peers that --initial-cluster names.

It was added to the cluster before it was started, so the members that they tell must be those of the flag,
URL for URL; then its id and the cluster's are known, and all else comes from the leader. A member whose
own name is known already has been started before, with data that are not here: it may have voted and
promised what it no longer knows, so it is refused.

Source: etcd server/etcdserver/{bootstrap,cluster_util}.go, server/etcdserver/api/membership/cluster.go
(ValidateClusterAndAssignIDs).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import requests

from etcd_server.api.proto import rpc_pb2
from etcd_server.bootstrap import BootstrapError, Identity, check_members, parse_initial_cluster
from etcd_server.config import Config

log = logging.getLogger("etcd_server")

FETCH_LIMIT_S = 10.0
"""For the answer of a peer, as etcd's (GetClusterFromRemotePeers)."""
GLANCE_LIMIT_S = 1.0
"""For a look whether a new member is really new, as etcd's BootstrapTimeout."""
GLANCE_HEADER = "X-Etcd-Py-Glance"
"""Marks such a look: a member that is itself at its beginning has nothing to tell and says so at once. First
members that are started together would else wait for each other."""
ATTENDED_S = 0.02
LARGEST_ANSWER_BYTES = 1024 * 1024


class FetchFailed(Exception):
    """A peer did not tell the members of its cluster; the text is one line that says why."""


@dataclass(frozen=True, slots=True)
class Remote:
    """A cluster as one of its members tells it."""

    cluster_id: int
    members: tuple[rpc_pb2.Member, ...]


Fetch = Callable[[str, float], Remote]
"""Asks a peer URL, with a limit in s. Raises FetchFailed."""


class Joining(NamedTuple):
    """Who a member is that joins a running cluster, and all members of it."""

    identity: Identity
    remotes: tuple[rpc_pb2.Member, ...]


def fetch_members(peer_url: str, limit_s: float, headers: Mapping[str, str] | None = None) -> Remote:
    """The cluster of the member at `peer_url`, from its page /members. Raises FetchFailed."""
    try:
        with requests.Session() as session:
            session.trust_env = False
            answer = session.get(
                f"{peer_url}/members", timeout=limit_s, allow_redirects=False, stream=True, headers=headers
            )
            with answer:
                body = answer.raw.read(LARGEST_ANSWER_BYTES, decode_content=True)
    except (requests.RequestException, OSError) as error:
        raise FetchFailed(_reason(error)) from None
    if answer.status_code != 200:
        raise FetchFailed(f"status {answer.status_code}")
    try:
        cluster_id = int(answer.headers.get("X-Etcd-Cluster-Id", ""), 16)
        members = tuple(map(_member, json.loads(body)))
    except (ValueError, TypeError, KeyError):
        raise FetchFailed("the answer is not a list of members") from None
    if not members:
        raise FetchFailed("it does not know the members yet")
    return Remote(cluster_id, members)


def glance_at_members(peer_url: str, limit_s: float) -> Remote:
    """As `fetch_members`, of a member that has something to tell. Raises FetchFailed."""
    return fetch_members(peer_url, limit_s, {GLANCE_HEADER: "1"})


def is_glance(headers: Iterable[tuple[str, str]]) -> bool:
    """Whether a request with these headers, their names in lower case, is such a look."""
    return any(name == GLANCE_HEADER.lower() for name, _ in headers)


def _member(told: Mapping[str, object]) -> rpc_pb2.Member:
    return rpc_pb2.Member(
        ID=told["id"],  # type: ignore[arg-type]
        name=told.get("name", ""),  # type: ignore[arg-type]
        peerURLs=told.get("peerURLs") or [],  # type: ignore[arg-type]
        clientURLs=told.get("clientURLs") or [],  # type: ignore[arg-type]
        isLearner=bool(told.get("isLearner")),
    )


def _reason(error: Exception) -> str:
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    text = " ".join(str(error).split())
    return "connection refused" if "Connection refused" in text else text[:120]


def join(config: Config, identity: Identity | None = None, fetch: Fetch = fetch_members) -> Joining:
    """The place of this member in the cluster that --initial-cluster describes. Raises BootstrapError.

    identity: who it is, if it has begun to join already and has not heard from the leader yet.
    """
    named = parse_initial_cluster(config.initial_cluster)
    check_members(config, named)
    remote = _ask_one(_peer_urls(config, named), fetch)
    _check_same(config, named, remote)
    own_urls = frozenset(named[config.name])
    [own] = [member for member in remote.members if own_urls == frozenset(member.peerURLs)]
    if identity is not None:
        _check_identity(config, identity, Identity(own.ID, remote.cluster_id))
    elif own.name:
        raise BootstrapError(
            f'member {own.ID:x} has been started before, as "{own.name}", and its data are not in '
            f"{config.data_dir}: bring them back, or remove the member from the cluster and add it again"
        )
    return Joining(Identity(own.ID, remote.cluster_id), remote.members)


def refuse_second_beginning(
    config: Config,
    identity: Identity,
    fetch: Fetch = glance_at_members,
    attend: Callable[[float], None] | None = None,
) -> None:
    """A first member without data: refused where the others know that it was there already (etcd:
    isMemberBootstrapped). Raises BootstrapError.

    attend: is called again and again, with a time in s that it may take, until the others have been asked.
    """
    peer_urls = _peer_urls(config, parse_initial_cluster(config.initial_cluster))
    for found in _glances(peer_urls, fetch, attend):
        for member in found.members:
            if identity.member_id == member.ID and member.clientURLs:
                raise BootstrapError(
                    f"member {member.ID:x} has already been bootstrapped, and its data are not in "
                    f"{config.data_dir}: bring them back, or remove the member from the cluster, add it "
                    "again and start it with --initial-cluster-state existing"
                )


def _peer_urls(config: Config, named: Mapping[str, Iterable[str]]) -> list[str]:
    """Where the others are, sorted."""
    return sorted(url for name, urls in named.items() if name != config.name for url in urls)


def _ask_one(peer_urls: Iterable[str], fetch: Fetch) -> Remote:
    """The first answer."""
    reasons = []
    for url in peer_urls:
        try:
            return fetch(url, FETCH_LIMIT_S)
        except FetchFailed as failure:
            log.warning("failed to get cluster response", extra={"address": url, "error": str(failure)})
            reasons.append(f"{url}: {failure}")
    why = "; ".join(reasons) or "--initial-cluster names no other member"
    raise BootstrapError(
        "cannot fetch cluster info from peer urls: could not retrieve cluster information from the given "
        f"URLs ({why})"
    )


def _glances(peer_urls: list[str], fetch: Fetch, attend: Callable[[float], None] | None) -> list[Remote]:
    """What the peers say that answer at once; all are asked together, as they may be starting, too."""

    def glance(url: str) -> Remote | None:
        try:
            return fetch(url, GLANCE_LIMIT_S)
        except FetchFailed:
            return None

    if not peer_urls:
        return []
    with ThreadPoolExecutor(len(peer_urls)) as pool:
        asked = [pool.submit(glance, url) for url in peer_urls]
        while attend is not None and not all(one.done() for one in asked):
            attend(ATTENDED_S)
        return [found for one in asked if (found := one.result()) is not None]


def _check_same(config: Config, named: Mapping[str, Iterable[str]], remote: Remote) -> None:
    if len(named) != len(remote.members):
        raise BootstrapError(
            f"error validating peerURLs: member count is unequal: --initial-cluster names {len(named)}, "
            f"cluster {remote.cluster_id:x} has {len(remote.members)} ({_listed(remote.members)})"
        )
    known = {frozenset(urls) for urls in named.values()}
    for member in remote.members:
        if frozenset(member.peerURLs) not in known:
            raise BootstrapError(
                "error validating peerURLs: PeerURLs: no match found for existing member "
                f"({member.ID:x}, [{' '.join(member.peerURLs)}]) in --initial-cluster "
                f"{config.initial_cluster}"
            )


def _check_identity(config: Config, identity: Identity, found: Identity) -> None:
    if identity.cluster_id != found.cluster_id:
        raise BootstrapError(
            f"cluster ID mismatch: {config.data_dir} belongs to cluster {identity.cluster_id:x}, the peers "
            f"of --initial-cluster to {found.cluster_id:x}"
        )
    if identity.member_id != found.member_id:
        raise BootstrapError(
            f"member ID mismatch: {config.data_dir} belongs to member {identity.member_id:x}, in cluster "
            f"{found.cluster_id:x} the member with these peer URLs is {found.member_id:x}; remove the "
            "directory if the member was removed and added again"
        )


def _listed(members: Iterable[rpc_pb2.Member]) -> str:
    return ", ".join(f"{member.name or 'unnamed'}={','.join(member.peerURLs)}" for member in members)
