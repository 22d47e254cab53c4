"""The key space, its history and its compaction against the model."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from tests.properties.store_twins import Twins, told


class KeySpace(Twins):
    """Compaction at any revision, its rows removed in steps of any size, at any time."""

    @rule(back=st.integers(-1, 8), finish=st.booleans())
    def compact(self, back: int, finish: bool) -> None:
        self._compact(self.model.revision - back, finish)

    @rule(finish=st.booleans())
    def compact_at_the_last_deletion(self, finish: bool) -> None:
        """The revision at which too much is removed most easily."""
        deletions = [event.revision for event in self.model.events if event.is_deletion]
        self._compact(max(deletions, default=0), finish)

    def _compact(self, revision: int, finish: bool) -> None:
        self.both(lambda: self.lab.compact(revision) and None, lambda: self.model.compact(revision))
        if finish:
            self.lab.finish_compaction(3)
            self.lab.check_tables()

    @rule(rows=st.integers(1, 6))
    def step(self, rows: int) -> None:
        self.lab.machine.compact_step(rows)

    @invariant()
    def a_watch_from_the_compacted_revision_misses_nothing(self) -> None:
        compacted = self.model.compacted
        events = told(self.lab, max(compacted, 0), limit_rows=1 + self.model.revision % 4)
        # Values before an event at the compacted revision itself may be gone; deletions at it are not.
        behind = [event for event in events if event.revision > compacted]
        assert behind == [event for event in self.model.events if event.revision > compacted]
        deletions = [event.kv for event in events if event.revision == compacted and event.is_deletion]
        assert deletions == [
            event.kv for event in self.model.events if event.revision == compacted and event.is_deletion
        ]

    @invariant()
    def changes_are_those_of_the_database(self) -> None:
        for main, events in self.lab.machine.take_changes():
            rows = self.lab.machine.events_since(main, main, 1)
            if main > self.model.compacted:
                assert [(kind, key, at, kv, before) for kind, key, at, kv, before in events] == [
                    (int(is_deletion), key, at, kv, before) for at, is_deletion, key, kv, before in rows
                ]


TestKeySpace = KeySpace.TestCase
TestKeySpace.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
