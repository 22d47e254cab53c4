"""Consensus as a pure state machine. `raft.node` is its only public face; DESIGN.md says how and why."""
