"""The commands of the raft scripts. Members are numbered 1, 2, 3...; `members=` and `member=` name them.

start voters=(1,2,3) learners=() [SETTING=n ...]   members with one configuration; settings are those of
Config join member=4 [voters=() learners=()]              a new member, with an empty log, that knows these
members tick member=1 [count=1]                            time passes for one member campaign member=1
ticks a member until it campaigns propose member=1 DATA / change member=1 CHANGE     a proposal: text in
`data=`; a change as `add-voter=4` read member=1 context=7                            asks for a read index
transfer member=1 to=2                             asks for another leader unreachable member=1 peer=2 /
snapshot-failed member=1 peer=2 ready member=1                                     takes one Ready and prints
it; its write waits persist member=1 [count=1]                         the oldest waiting writes reach the
disk deliver [from=1] [to=2] [count=n] / drop ...       messages on their way arrive, or are lost cut-off
members=(1) / heal                         messages from and to these are lost from now on stabilize [quiet]
ready, persist, deliver until nothing is left to do crash member=1 / restart member=1                  memory
is lost; comes back with what is on its disk compact member=1 index=5                           drops the log
up to an index status [members=(1,2)] / log member=1 / applied member=1
"""

from dataclasses import fields
from typing import Any

from etcd_server.raft.confchange import ChangeKind, ConfChange
from etcd_server.raft.errors import RaftError
from etcd_server.raft.messages import InstallSnapshot
from etcd_server.raft.node import Status
from etcd_server.raft.state import Config, Role
from tests.golden.datadriven import Command
from tests.golden.raft.lab import (
    Envelope,
    Member,
    describe_configuration,
    describe_entry,
    describe_message,
    describe_ready,
    encode_change,
)

_SETTINGS = {field.name.replace("_", "-"): field.name for field in fields(Config)}


class LowestRandom:
    """Every draw is the lowest possible, so that all members have the same election time-out."""

    def randrange(self, start: int, stop: int, /) -> int:
        return start


class Interaction:
    """The members and the network of one script."""

    def __init__(self) -> None:
        self.members: dict[int, Member] = {}
        self.network: list[Envelope] = []
        self.cut_off: frozenset[int] = frozenset()

    def handle(self, command: Command) -> str:
        """Performs a command and prints what came of it; a refusal of the core is printed, too."""
        action = getattr(self, "do_" + command.name.replace("-", "_"))
        try:
            return "\n".join(action(command)) or "ok"
        except RaftError as error:
            return f"{type(error).__name__}: {error}"

    def _member(self, command: Command) -> Member:
        return self.members[command.number("member")]

    # Members

    def do_start(self, command: Command) -> list[str]:
        voters, learners = command.numbers("voters"), command.numbers("learners")
        for member in sorted((*voters, *learners)):
            self._add(command, member, voters, learners)
        return []

    def do_join(self, command: Command) -> list[str]:
        self._add(command, command.number("member"), command.numbers("voters"), command.numbers("learners"))
        return []

    def _add(self, command: Command, member: int, voters: tuple[int, ...], learners: tuple[int, ...]) -> None:
        settings: dict[str, Any] = {
            _SETTINGS[name]: {"true": True, "false": False}.get(value)
            if value in ("true", "false")
            else int(value)
            for name, value in command.arguments.items()
            if name not in ("voters", "learners", "member")
        }
        config = Config(member_id=member, voters=voters, learners=learners, **settings)
        self.members[member] = Member(config, LowestRandom())

    def do_crash(self, command: Command) -> list[str]:
        member = self._member(command)
        member.alive = False
        return [f"{len(member.writes)} writes lost"]

    def do_restart(self, command: Command) -> list[str]:
        member = self._member(command)
        member.checkpoint = command_checkpoint(command, member)
        member.start()
        return self._status(member.member_id)

    def do_compact(self, command: Command) -> list[str]:
        self._member(command).log.cut(command.number("index"))
        return []

    # Events

    def do_tick(self, command: Command) -> list[str]:
        for _ in range(command.number("count", 1)):
            self._member(command).node.tick()
        return []

    def do_campaign(self, command: Command) -> list[str]:
        node = self._member(command).node
        term = node.status.term
        for _ in range(100):
            node.tick()
            if node.status.role in (Role.PRE_CANDIDATE, Role.CANDIDATE) or node.status.term > term:
                return []
        return ["it does not campaign"]

    def do_propose(self, command: Command) -> list[str]:
        self._member(command).node.propose(command.text("data").encode())
        return []

    def do_change(self, command: Command) -> list[str]:
        for name in ("add-voter", "add-learner", "remove"):
            if name in command.arguments:
                change = ConfChange(ChangeKind[name.upper().replace("-", "_")], command.number(name))
                self._member(command).node.propose_conf_change(encode_change(change))
        return []

    def do_read(self, command: Command) -> list[str]:
        self._member(command).node.read_index(command.number("context"))
        return []

    def do_transfer(self, command: Command) -> list[str]:
        self._member(command).node.transfer_leadership(command.number("to"))
        return []

    def do_unreachable(self, command: Command) -> list[str]:
        self._member(command).node.report_unreachable(command.number("peer"))
        return []

    def do_snapshot_failed(self, command: Command) -> list[str]:
        self._member(command).node.report_snapshot(command.number("peer"), succeeded=False)
        return []

    # Output

    def do_ready(self, command: Command) -> list[str]:
        return self._take(self._member(command), "") or ["nothing"]

    def _take(self, member: Member, indent: str) -> list[str]:
        taken = member.take()
        if taken is None:
            return []
        ready, envelopes = taken
        self.network += envelopes
        return [indent + line for line in describe_ready(ready)]

    def do_persist(self, command: Command) -> list[str]:
        member = self._member(command)
        for _ in range(command.number("count", 1)):
            member.persist()
        return []

    def do_deliver(self, command: Command) -> list[str]:
        picked = self._pick(command)
        if command.flag("keep"):
            self.network += picked
        return [self._deliver(envelope) for envelope in picked]

    def do_drop(self, command: Command) -> list[str]:
        return ["lost " + describe_message(envelope.message) for envelope in self._pick(command)]

    def _pick(self, command: Command) -> list[Envelope]:
        picked: list[Envelope] = []
        left: list[Envelope] = []
        count = command.number("count", len(self.network))
        for envelope in self.network:
            message = envelope.message
            wanted = message.sender == command.number("from", message.sender)
            wanted = wanted and message.to == command.number("to", message.to)
            (picked if wanted and len(picked) < count else left).append(envelope)
        self.network = left
        return picked

    def _deliver(self, envelope: Envelope) -> str:
        message = envelope.message
        text = describe_message(message)
        receiver = self.members.get(message.to)
        if receiver is None or not receiver.alive or {message.sender, message.to} & self.cut_off:
            return "lost " + text
        receiver.step(envelope)
        if isinstance(message, InstallSnapshot):
            self.members[message.sender].node.report_snapshot(message.to, succeeded=True)
        return text

    def do_cut_off(self, command: Command) -> list[str]:
        self.cut_off = frozenset(command.numbers("members"))
        return []

    def do_heal(self, command: Command) -> list[str]:
        self.cut_off = frozenset()
        return []

    def do_stabilize(self, command: Command) -> list[str]:
        lines: list[str] = []
        for _ in range(200):
            before = len(lines)
            for member in self.members.values():
                if not member.alive:
                    continue
                while took := self._take(member, "  "):
                    lines += [f"member {member.member_id}:", *took]
                while member.writes:
                    member.persist()
                    lines.append(f"member {member.member_id}: persisted")
            arriving, self.network = self.network, []
            lines += [self._deliver(envelope) for envelope in arriving]
            if len(lines) == before:
                return [] if command.flag("quiet") else lines
        raise AssertionError(f"{command.location}: it never comes to rest")

    # Views

    def do_status(self, command: Command) -> list[str]:
        return [
            line for member in command.numbers("members") or self.members for line in self._status(member)
        ]

    def _status(self, member: int) -> list[str]:
        if not self.members[member].alive:
            return [f"{member}: crashed"]
        status = self.members[member].node.status
        lines = [f"{member}: {describe_status(status)}"]
        lines += [
            f"  {peer.member_id}: {peer.state.value} match={peer.match_index} next={peer.next_index}"
            for peer in status.peers
        ]
        return lines

    def do_log(self, command: Command) -> list[str]:
        log = self._member(command).log
        return [f"on disk: term={log.hard_state.term} vote={log.hard_state.vote}"] + [
            describe_entry(entry) for entry in log.stored
        ]

    def do_applied(self, command: Command) -> list[str]:
        state = self._member(command).state
        texts = [data.decode() for _, _, data in state.history if data]
        return [
            f"up to {state.applied_index}: {' '.join(texts)}",
            describe_configuration(state.configuration),
        ]


def command_checkpoint(command: Command, member: Member) -> Any:
    """The state on disk at a restart: all that was applied, or with `replay` what the last checkpoint
    held."""
    return member.checkpoint if command.flag("replay") else member.state


def describe_status(status: Status) -> str:
    """One line for a member."""
    leader = status.leader_id or "unknown"
    return (
        f"{status.role.value} term={status.term} vote={status.vote} leader={leader} last={status.last_index} "
        f"stable={status.stable_index} commit={status.commit_index} applied={status.applied_index} "
        f"{describe_configuration(status.configuration)}"
    )
