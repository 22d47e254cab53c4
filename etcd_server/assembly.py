"""A member put together from a `Config`, and run: what is opened in which order, and closed again.

Ports are opened before anything is written, so that an address in use costs nothing; the data directory is
locked before a file in it is touched; a new one gets its first entries, the members of the new cluster, in
the log.
"""

from __future__ import annotations

import logging
import os
import random
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from typing import NoReturn

from etcd_server import bootstrap, joining, recovery
from etcd_server.api.proto import rpc_pb2
from etcd_server.config import Config
from etcd_server.exchange import Exchange
from etcd_server.logs import reopen, to_standard_error
from etcd_server.machine.apply import Machine
from etcd_server.raft.messages import HardState
from etcd_server.raft.node import Node
from etcd_server.raft.state import Config as RaftConfig
from etcd_server.runtime import Loop, tune_interpreter
from etcd_server.services.core import Settings
from etcd_server.services.engine import METHODS, Engine
from etcd_server.storage.database import StateDatabase
from etcd_server.storage.datadir import DataDirectory
from etcd_server.storage.errors import DiskFailed, StorageError, translated
from etcd_server.storage.install import Installation, recover
from etcd_server.storage.raftlog import RaftLog
from etcd_server.storage.reserve import Reserve
from etcd_server.storage.schema import STATE_SCHEMA, STATE_SCHEMA_VERSION
from etcd_server.transport.access import AccessRules
from etcd_server.transport.http import HttpFront
from etcd_server.transport.pages import Durations, Pages, timed
from etcd_server.transport.peers import Greeting, Links
from etcd_server.transport.snapshot_files import SnapshotFiles
from etcd_server.transport.wire import CLIENT, MESSAGE_OVERHEAD_BYTES, PEER, Transport
from etcd_server.version import CLUSTER_VERSION, ETCD_VERSION, VERSION
from etcd_server.workers import Courier, Keeper, LogWriter

log = logging.getLogger("etcd_server")

DEFAULT_QUOTA_BYTES = 2 * 1024**3
# What is under way to a member that catches up fits into the queue of its link.
MESSAGE_BYTES = 512 * 1024
MESSAGES_IN_FLIGHT = 64


def settings_of(config: Config, member_id: int, cluster_id: int) -> Settings:
    """What the services need of the configuration."""
    return Settings(
        cluster_id=cluster_id,
        member_id=member_id,
        member_name=config.name,
        client_urls=config.advertise_client_urls,
        server_version=ETCD_VERSION,
        cluster_version=CLUSTER_VERSION,
        heartbeat_interval_s=config.heartbeat_interval_ms / 1000,
        election_timeout_s=config.election_timeout_ms / 1000,
        max_txn_operations=config.max_txn_ops,
        max_request_bytes=config.max_request_bytes,
        quota_bytes=config.quota_backend_bytes or DEFAULT_QUOTA_BYTES,
        snapshot_count=config.snapshot_count,
        catch_up_entries=config.snapshot_catchup_entries,
        auto_compaction_mode=config.auto_compaction_mode,
        auto_compaction_retention=config.auto_compaction_retention,
        progress_notify_interval_s=config.watch_progress_notify_interval_s,
        strict_reconfig_check=config.strict_reconfig_check,
        max_learners=config.max_learners,
        initial_ticks=initial_ticks(config),
    )


def election_ticks(config: Config) -> int:
    """Heartbeat intervals in an election time-out."""
    return config.election_timeout_ms // config.heartbeat_interval_ms


def initial_ticks(config: Config) -> int:
    """All of the first time-out but two heartbeats, within which a leader would be heard (etcd:
    server/etcdserver/server.go adjustTicks)."""
    return max(election_ticks(config) - 2, 0) if config.initial_election_tick_advance else 0


def run(config: Config) -> int:
    """Run a member until it is told to stop; returns the exit status.

    Raises WireError (a port), StorageError (the data directory or a file in it), BootstrapError (the
    directory belongs to another member or cluster): each text is one line for the user.
    """
    with ExitStack() as stack:
        transport = Transport(
            METHODS,
            config.max_request_bytes,
            max_concurrent_streams=config.max_concurrent_streams,
            keepalive_min_time_s=config.grpc_keepalive_min_time_s,
            keepalive_interval_s=config.grpc_keepalive_interval_s,
            keepalive_timeout_s=config.grpc_keepalive_timeout_s,
        )
        stack.callback(transport.close, 0.0)
        listen(transport, config)
        directory = DataDirectory.open(config.data_dir)
        stack.callback(directory.close)
        reserve = Reserve.open(directory.reserve_path)
        raft_log = RaftLog.open(directory.raft_log_path)
        stack.callback(raft_log.close)
        if recover(directory, raft_log, reserve):
            log.info("completed the installation of a snapshot")
        database = StateDatabase.open(
            directory.state_path,
            STATE_SCHEMA,
            STATE_SCHEMA_VERSION,
            reserve=reserve,
        )
        stack.callback(database.close)
        with translated(directory.state_path):
            machine = Machine(database)
        raft_log.check_joins(machine.applied_index)
        identity, remotes = identify(config, directory, raft_log, machine, transport)
        if machine.members.is_removed(identity.member_id):
            tell_removed(config, identity)
            return 0
        engine = build_engine(config, identity, raft_log, machine)
        links = build_links(engine, transport, remotes)
        durations = Durations()
        database.measure = timed(durations.state_commit)
        courier = Courier(directory, transport.post)
        files = SnapshotFiles(transport, courier, engine, greeting(engine), links.judge)
        transport.files = files
        pages = Pages(engine, transport, links, files, durations, VERSION)
        front = HttpFront(
            transport, METHODS, config.max_request_bytes + MESSAGE_OVERHEAD_BYTES, pages, AccessRules()
        )
        writer = LogWriter(raft_log, transport.post, durations.log_sync.observe)
        keeper = Keeper(directory, reserve, raft_log, transport.post)
        exchange = Exchange(
            files=files,
            courier=courier,
            installation=Installation(directory.state_path, directory.plan_path, raft_log, reserve=reserve),
            database=database,
            writer=writer,
            keeper=keeper,
        )
        loop = Loop(
            engine=engine,
            transport=transport,
            front=front,
            links=links,
            exchange=exchange,
            database=database,
            writer=writer,
            keeper=keeper,
            on_ready=lambda: announce(config, engine),
            on_removed=lambda: tell_removed(config, identity),
            on_reload=reopen,
        )
        loop.catch_signals()
        tune_interpreter()
        try:
            with translated(directory.state_path):
                return loop.run()
        except Exception as error:
            end_at_once(config, error)


def end_at_once(config: Config, error: Exception) -> NoReturn:
    """End the process because of what the loop or a thread has met: exit status 1, and one line says why.

    Nothing is closed, synced or tried again: after a failed sync it is unknown what the disk holds, and only
    the next start reads it anew. What was answered is in the log.
    """
    if isinstance(error, StorageError):
        text = str(error)
    else:
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        text = (
            f"internal error: {what}; a mistake in etcd-py, please report it with the log; "
            "all that was answered is on the disk, and the server may be started again"
        )
        log.critical("internal error", exc_info=error)
    if not to_standard_error(config.log_outputs):
        log.critical("failed to run", extra={"error": text})
    print(f"etcd-py: {text}", file=sys.stderr, flush=True)
    os._exit(1)


def listen(transport: Transport, config: Config) -> None:
    """Open every listener. Raises WireError."""
    for name, urls in (
        (CLIENT, config.listen_client_urls),
        (PEER, config.listen_peer_urls),
        ("metrics", config.listen_metrics_urls),
    ):
        for url in urls:
            log.info("serving %s traffic", name, extra={"address": transport.listen(url, name)})


def identify(
    config: Config, directory: DataDirectory, raft_log: RaftLog, machine: Machine, transport: Transport
) -> tuple[bootstrap.Identity, tuple[rpc_pb2.Member, ...]]:
    """Who this member is, and the members of the cluster that it joins. The first members are given their
    first entries, then their identity; killed in between, they are given the same ones again. A member that
    joins asks for the others until it knows them from the log. Raises BootstrapError, StorageError."""
    if config.force_new_cluster:
        return recovery.go_on_alone(directory.path, raft_log, machine), ()
    identity = bootstrap.read_identity(directory.path)
    remotes: tuple[rpc_pb2.Member, ...] = ()
    if config.initial_cluster_state == "existing":
        if identity is not None and knows_itself(machine, identity.member_id):
            return identity, remotes
        identity, remotes = joining.join(config, identity)
    elif identity is not None:
        return identity, remotes
    else:
        first = bootstrap.first_entries(config)
        identity = first.identity
        joining.refuse_second_beginning(
            config, identity, attend=lambda limit_s: transport.attend(limit_s, joining.is_glance)
        )
        if raft_log.last_index() == 0:
            raft_log.append(HardState(term=1, vote=0, commit=len(first.entries)), first.entries)
    try:
        bootstrap.write_identity(directory.path, identity)
    except OSError as error:
        raise DiskFailed(f"{directory.path / bootstrap.IDENTITY_FILE}: {error.strerror}") from error
    return identity, remotes


def knows_itself(machine: Machine, member_id: int) -> bool:
    """Whether the state tells what became of this member."""
    return machine.members.get(member_id) is not None or machine.members.is_removed(member_id)


def build_engine(config: Config, identity: bootstrap.Identity, raft_log: RaftLog, machine: Machine) -> Engine:
    """The engine over opened files."""
    members = machine.members.all()
    node = Node(
        RaftConfig(
            member_id=identity.member_id,
            voters=tuple(member.ID for member in members if not member.isLearner),
            learners=tuple(member.ID for member in members if member.isLearner),
            hard_state=raft_log.initial()[0],
            applied_index=machine.applied_index,
            election_ticks=election_ticks(config),
            pre_vote=config.pre_vote,
            max_message_bytes=MESSAGE_BYTES,
            max_inflight=MESSAGES_IN_FLIGHT,
        ),
        raft_log,
        random.Random(),
    )
    return Engine(
        settings=settings_of(config, identity.member_id, identity.cluster_id),
        node=node,
        log_storage=raft_log,
        machine=machine,
        random=random.SystemRandom(),
    )


def build_links(engine: Engine, transport: Transport, remotes: Iterable[rpc_pb2.Member]) -> Links:
    """The links to the other members, and from them to here."""
    links = Links(transport, greeting(engine), engine.machine, remotes)
    transport.links = links
    return links


def greeting(engine: Engine) -> Greeting:
    """Who this member says it is."""
    settings = engine.settings
    return Greeting(settings.cluster_id, settings.member_id, settings.member_id, settings.server_version)


def tell_removed(config: Config, identity: bootstrap.Identity) -> None:
    """Say why the member ends."""
    text = (
        f"member {identity.member_id:x} has been permanently removed from cluster {identity.cluster_id:x}; "
        f"its data in {config.data_dir} cannot be used again: to come back it is added anew and starts with "
        "an empty directory"
    )
    log.error(text)
    if not to_standard_error(config.log_outputs):
        print(f"etcd-py: {text}", file=sys.stderr, flush=True)


def announce(config: Config, engine: Engine) -> None:
    """Say the two things that others wait for in the log (etcd's own words)."""
    member_id = f"{engine.settings.member_id:x}"
    log.info(
        "published local member to cluster through raft",
        extra={"local-member-id": member_id, "cluster-id": f"{engine.settings.cluster_id:x}"},
    )
    for url in config.listen_client_urls:
        log.info("ready to serve client requests", extra={"local-member-id": member_id, "address": url})
