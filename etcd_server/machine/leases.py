"""Leases as replicated facts: which exist, with what TTL, and which keys they hold.

A key belongs to the lease that its last put named; that is a column of the key's row, found through a partial
index, so that there is no second record that could disagree. When a lease has run out is not known here: the
leader keeps time and proposes to revoke it, and only the applied revocation makes the keys go, all in one
revision.

Source: etcd server/lease/lessor.go (Grant, Revoke).
"""

from __future__ import annotations

from etcd_server.api import errors
from etcd_server.machine.mvcc import Store
from etcd_server.storage.schema import MAX_CHANGES_PER_REVISION
from etcd_server.storage.tables import FactTables

MAX_TTL_S = 9_000_000_000


class Leases:
    """All leases of the cluster."""

    def __init__(self, facts: FactTables, store: Store) -> None:
        self._facts = facts
        self._store = store
        self._changes: list[tuple[int, int | None]] = []

    def exists(self, lease_id: int) -> bool:
        return self._facts.lease_ttl(lease_id) is not None

    def ttl(self, lease_id: int) -> int | None:
        """The granted TTL in seconds; None for a lease that is not there."""
        return self._facts.lease_ttl(lease_id)

    def keys(self, lease_id: int) -> list[bytes]:
        """The keys attached to a lease, sorted."""
        return self._store.tables.keys_of_lease(lease_id)

    def all(self) -> list[tuple[int, int]]:
        """(id, TTL in seconds) of every lease, by id."""
        return self._facts.leases()

    def grant(self, lease_id: int, ttl_s: int) -> None:
        """Create a lease. Raises LeaseNotFound for id 0 (as etcd), LeaseTTLTooLarge, LeaseExists."""
        if lease_id == 0:
            raise errors.LeaseNotFound
        if ttl_s > MAX_TTL_S:
            raise errors.LeaseTTLTooLarge
        if self.exists(lease_id):
            raise errors.LeaseExists
        self._facts.insert_lease(lease_id, ttl_s)
        self._changes.append((lease_id, ttl_s))

    def revoke(self, lease_id: int) -> None:
        """Remove a lease and delete its keys in their order, all at one revision.

        Raises LeaseNotFound, and TooManyOperations when they do not fit into one revision.
        """
        if not self.exists(lease_id):
            raise errors.LeaseNotFound
        keys = self.keys(lease_id)
        if len(keys) > MAX_CHANGES_PER_REVISION:
            raise errors.TooManyOperations
        write = self._store.write()
        write.delete_keys(keys)
        write.finish()
        self._facts.delete_lease(lease_id)
        self._changes.append((lease_id, None))

    def take_changes(self) -> list[tuple[int, int | None]]:
        """(id, TTL in seconds, or None when it was revoked) since the last call, in order."""
        changes, self._changes = self._changes, []
        return changes
