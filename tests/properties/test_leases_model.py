"""Leases and the keys they hold against the model."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from tests.properties.store_twins import LEASES, Twins


class Holding(Twins):
    """Keys come and go, are re-attached and let go; a revocation takes what is attached at that moment."""

    def __init__(self) -> None:
        super().__init__()
        self.clock: dict[int, int] = {}

    @rule(lease_id=st.sampled_from(LEASES), ttl_s=st.integers(1, 100))
    def grant(self, lease_id: int, ttl_s: int) -> None:
        self.both(lambda: self.lab.grant(lease_id, ttl_s) and None, lambda: self.model.grant(lease_id, ttl_s))

    @rule(lease_id=st.sampled_from(LEASES))
    def revoke(self, lease_id: int) -> None:
        before = self.model.revision
        keys = self.model.keys_of(lease_id)
        self.lab.machine.take_changes()
        self.both(lambda: self.lab.revoke(lease_id) and None, lambda: self.model.revoke(lease_id))
        deleted = [(main, [event[1] for event in events]) for main, events in self.lab.machine.take_changes()]
        assert deleted == ([(before + 1, keys)] if keys else [])

    @invariant()
    def same_leases(self) -> None:
        leases = self.lab.machine.leases
        assert leases.all() == sorted(self.model.leases.items())
        for lease_id in LEASES:
            assert leases.keys(lease_id) == (
                self.model.keys_of(lease_id) if lease_id in self.model.leases else []
            )
            assert leases.ttl(lease_id) == self.model.leases.get(lease_id)

    @invariant()
    def the_clock_is_told_everything(self) -> None:
        # After a replay the same grants and revocations are told again: the last word is the same.
        for lease_id, ttl_s in self.lab.machine.take_lease_changes():
            if ttl_s is None:
                self.clock.pop(lease_id, None)
            else:
                self.clock[lease_id] = ttl_s
        assert self.clock == self.model.leases


TestHolding = Holding.TestCase
TestHolding.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
