"""What the core refuses, as one small tree.

    RaftError
    ├── Dropped                the request was not taken: nothing of it will happen, try again later
    │   ├── ProposalDropped    no leader, a transfer of leadership, or too much that is not committed
    │   └── ReadDropped        no leader
    ├── WrongRecipient         a message that was meant for another member
    └── LogGap                 log, hard state and applied index given at the start do not fit together

Anything else that goes wrong in here is a bug of ours: an assertion fails and the process ends.
"""


class RaftError(Exception):
    """The root of the tree."""


class Dropped(RaftError):
    """The request was not taken and has no effect."""


class ProposalDropped(Dropped):
    """The proposal was not taken: it will never be committed."""


class ReadDropped(Dropped):
    """The read was not taken: no read state will come for it."""


class WrongRecipient(RaftError):
    """A message addressed to another member arrived here (etcd issue 17814)."""


class LogGap(RaftError):
    """The log does not join the state that was applied: entries between them are missing."""
