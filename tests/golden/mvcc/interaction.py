"""The commands of the mvcc scripts, which run on one machine. Keys and values are text.

    put key=a value=1 [lease=5] [prev-kv] [ignore-value] [ignore-lease]
    batch                                     puts of one log entry, a line `a=1` each
    delete WHICH [prev-kv]                    WHICH is key=a, or key=a end=c, or from=b, or prefix=a, or all
    range WHICH [revision=3] [limit=2] [by=mod] [order=descend] [keys-only] [count-only] [min-mod=2] ...
    txn [max-ops=8]                           lines as `if version(a) = 0`, `then put a=1`, `else range a c`,
                                              `then txn` and what belongs to it indented below
    grant id=5 [ttl=60] / revoke id=5 / lease id=5
    alarm raise=nospace [member=1] / alarm clear=nospace [member=1] / alarm
    compact revision=3                        what is below cannot be read any more
    step [rows=1000] [count=1]                removes compacted rows, looking at so many
    changes                                   what watchers are told since the last time
    events from=2 to=5 [rows=100]             the same, from the database
    tables                                    the rows of revisions, current, history
    commit / crash / replay                   crash loses what is not committed, replay applies the log again
    status

A packed revision is written main.sub.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etcd_server.api.errors import EtcdError
from etcd_server.api.keys import FROM_KEY, prefix_end
from etcd_server.api.proto import command_pb2, kv_pb2, rpc_pb2
from etcd_server.machine.mvcc import DELETE, key_of
from etcd_server.machine.txn import check_txn
from tests.golden.datadriven import Command
from tests.unit.machine.machines import Lab
from tests.unit.machine.operations import delete, put, read, txn, when

MAX_OPS = 8
_COMPARE = re.compile(r"if (?P<target>\w+)\((?P<key>\w+)(?:, (?P<end>\S+))?\) (?P<sign>\S+) (?P<wanted>\S+)")
_TARGETS = {
    "version": "version",
    "create": "create_revision",
    "mod": "mod_revision",
    "value": "value",
    "lease": "lease",
}


class Interaction:
    """The machine of one script."""

    def __init__(self, folder: Path) -> None:
        self.lab = Lab(folder)

    def close(self) -> None:
        self.lab.machine.database.close()

    def handle(self, command: Command) -> str:
        handler = getattr(self, "_" + command.name)
        try:
            return str(handler(command)) or "ok"
        except EtcdError as error:
            return f"error: {error.text}"

    # --- changes ------------------------------------------------------------------------------------------

    def _put(self, command: Command) -> str:
        response = self.lab.put(
            command.text("key").encode(),
            command.text("value", "").encode(),
            lease=command.number("lease", 0),
            prev_kv=command.flag("prev-kv"),
            ignore_value=command.flag("ignore-value"),
            ignore_lease=command.flag("ignore-lease"),
        )
        return _lines(f"revision {response.header.revision}", *_before(response))

    def _batch(self, command: Command) -> str:
        pairs = [line.partition("=") for line in command.input.splitlines()]
        outcomes = self.lab.apply(
            *(
                command_pb2.Command(put=rpc_pb2.PutRequest(key=k.encode(), value=v.encode()))
                for k, _, v in pairs
            )
        )
        return _lines(
            *(
                f"error: {outcome.text}" if isinstance(outcome, EtcdError) else f"revision {outcome[0]}"
                for outcome in outcomes
            )
        )

    def _delete(self, command: Command) -> str:
        response = self.lab.delete(*_which(command), prev_kv=command.flag("prev-kv"))
        return _lines(
            f"revision {response.header.revision} deleted {response.deleted}",
            *("  before: " + _kv(kv) for kv in response.prev_kvs),
        )

    def _txn(self, command: Command) -> str:
        request = _parse_txn(command.input.splitlines())
        check_txn(request, command.number("max-ops", MAX_OPS))
        response = self.lab.txn(request)
        return _lines(f"revision {response.header.revision}", *_txn_answer(response))

    def _grant(self, command: Command) -> str:
        response = self.lab.grant(command.number("id"), command.number("ttl", 60))
        return f"lease {response.ID} ttl {response.TTL}"

    def _revoke(self, command: Command) -> str:
        return f"revision {self.lab.revoke(command.number('id'))}"

    def _alarm(self, command: Command) -> str:
        actions = rpc_pb2.AlarmRequest
        for name, action in (("raise", actions.ACTIVATE), ("clear", actions.DEACTIVATE)):
            if name in command.arguments:
                kind = rpc_pb2.AlarmType.Value(command.text(name).upper())
                self.lab.alarm(action, kind, command.number("member", 1))
        alarms = self.lab.machine.alarms.all()
        return _lines(*(f"member {each.memberID} {rpc_pb2.AlarmType.Name(each.alarm)}" for each in alarms))

    def _compact(self, command: Command) -> str:
        return f"revision {self.lab.compact(command.number('revision'))}"

    def _step(self, command: Command) -> str:
        for _ in range(command.number("count", 1)):
            more = self.lab.machine.compact_step(command.number("rows", 1000))
        return "more to do" if more else "done"

    # --- reads --------------------------------------------------------------------------------------------

    def _range(self, command: Command) -> str:
        request = rpc_pb2.RangeRequest
        key, end = _which(command)
        response = self.lab.range(
            key,
            end,
            revision=command.number("revision", 0),
            limit=command.number("limit", 0),
            sort_target=request.SortTarget.Value(command.text("by", "key").upper()),
            sort_order=request.SortOrder.Value(command.text("order", "none").upper()),
            keys_only=command.flag("keys-only"),
            count_only=command.flag("count-only"),
            min_mod_revision=command.number("min-mod", 0),
            max_mod_revision=command.number("max-mod", 0),
            min_create_revision=command.number("min-create", 0),
            max_create_revision=command.number("max-create", 0),
        )
        return _lines(*_range_answer(response))

    def _lease(self, command: Command) -> str:
        lease_id, leases = command.number("id"), self.lab.machine.leases
        if not leases.exists(lease_id):
            return "no such lease"
        return f"ttl {leases.ttl(lease_id)} keys {[key.decode() for key in leases.keys(lease_id)]}"

    def _status(self, command: Command) -> str:
        machine = self.lab.machine
        return (
            f"applied {machine.applied_index} revision {machine.revision}"
            f" compacted {machine.compacted_revision}"
            + (" (rows are still to be removed)" if machine.compaction_pending else "")
        )

    # --- what watchers see ----------------------------------------------------------------------------------

    def _changes(self, command: Command) -> str:
        lines = []
        for main, events in self.lab.machine.take_changes():
            told = [_event(kind == DELETE, at, kv, before) for kind, _, at, kv, before in events]
            lines.append(f"{main}: " + "; ".join(told))
        return _lines(*lines)

    def _events(self, command: Command) -> str:
        rows = self.lab.machine.events_since(
            command.number("from"), command.number("to"), command.number("rows", 100)
        )
        return _lines(*(_event(is_deletion, at, kv, before) for at, is_deletion, _, kv, before in rows))

    def _tables(self, command: Command) -> str:
        lab = self.lab
        return _lines(
            "revisions",
            *(f"  {_event(size is None, at, kv, before)}" for at, before, size, kv in lab.rows("revisions")),
            "current",
            *(
                f"  {key.decode()} {_packed(at)} create={create} version={version}"
                + (f" lease={lease}" if lease else "")
                for key, at, create, version, lease in lab.rows("current")
            ),
            "history",
            *(
                f"  {key.decode()} {_packed(at)} until {_packed(until)} create={create} version={version}"
                for key, at, until, create, version in lab.rows("history")
            ),
        )

    # --- the transaction and the log ---------------------------------------------------------------------

    def _commit(self, command: Command) -> str:
        self.lab.machine.commit()
        return ""

    def _crash(self, command: Command) -> str:
        self.lab.crash()
        return self._status(command)

    def _replay(self, command: Command) -> str:
        self.lab.replay()
        return self._status(command)


def _which(command: Command) -> tuple[bytes, bytes]:
    """key and range_end of a request."""
    arguments = command.arguments
    if "all" in arguments:
        return FROM_KEY, FROM_KEY
    if "from" in arguments:
        return arguments["from"].encode(), FROM_KEY
    if "prefix" in arguments:
        prefix = arguments["prefix"].encode()
        return prefix, prefix_end(prefix)
    return command.text("key").encode(), command.text("end", "").encode()


def _parse_txn(lines: list[str]) -> rpc_pb2.TxnRequest:
    """A txn from its lines; those of a nested txn are indented by two more."""
    compares: list[rpc_pb2.Compare] = []
    branches: dict[str, list[rpc_pb2.RequestOp]] = {"then": [], "else": []}
    at = 0
    while at < len(lines):
        line, at = lines[at], at + 1
        if line.startswith("if "):
            compares.append(_parse_compare(line))
            continue
        branch, verb, *words = line.split()
        if verb == "txn":
            body = at
            while at < len(lines) and lines[at].startswith("  "):
                at += 1
            inner = _parse_txn([each[2:] for each in lines[body:at]])
            branches[branch].append(rpc_pb2.RequestOp(request_txn=inner))
        else:
            branches[branch].append(_parse_operation(verb, words))
    return txn(*compares, then=branches["then"], otherwise=branches["else"])


def _parse_compare(line: str) -> rpc_pb2.Compare:
    found = _COMPARE.fullmatch(line)
    if found is None:
        raise ValueError(f"cannot read the compare: {line}")
    target = _TARGETS[found["target"]]
    wanted = found["wanted"].encode() if target == "value" else int(found["wanted"])
    return when(target, found["key"].encode(), found["sign"], wanted, (found["end"] or "").encode())


def _parse_operation(verb: str, words: list[str]) -> rpc_pb2.RequestOp:
    plain = [word for word in words if not re.match(r"(lease|revision)=|prev-kv|ignore-", word)]
    options: dict[str, Any] = {
        word.partition("=")[0].replace("-", "_"): int(word.partition("=")[2] or 1)
        for word in words
        if word not in plain
    }
    if verb == "put":
        key, _, value = plain[0].partition("=")
        return put(key.encode(), value.encode(), **options)
    span = [word.encode() for word in plain]
    return {"range": read, "delete": delete}[verb](*span, **options)


def _txn_answer(response: rpc_pb2.TxnResponse) -> Iterator[str]:
    yield "succeeded" if response.succeeded else "failed"
    for operation in response.responses:
        match operation.WhichOneof("response"):
            case "response_put":
                yield f"  put at {operation.response_put.header.revision}"
                yield from ("  " + line for line in _before(operation.response_put))
            case "response_delete_range":
                deletion = operation.response_delete_range
                yield f"  delete at {deletion.header.revision} deleted {deletion.deleted}"
                yield from ("    before: " + _kv(kv) for kv in deletion.prev_kvs)
            case "response_range":
                yield f"  range at {operation.response_range.header.revision}"
                yield from ("    " + line for line in _range_answer(operation.response_range))
            case "response_txn":
                first, *rest = _txn_answer(operation.response_txn)
                yield f"  txn {first}"
                yield from ("  " + line for line in rest)


def _range_answer(response: rpc_pb2.RangeResponse) -> Iterator[str]:
    yield from (_kv(kv) for kv in response.kvs)
    yield f"count {response.count}" + (" and more" if response.more else "")


def _before(response: rpc_pb2.PutResponse) -> Iterator[str]:
    if response.HasField("prev_kv"):
        yield "  before: " + _kv(response.prev_kv)


def _kv(kv: kv_pb2.KeyValue) -> str:
    return (
        f"{kv.key.decode()}={kv.value.decode()}"
        f" create={kv.create_revision} mod={kv.mod_revision} version={kv.version}"
        + (f" lease={kv.lease}" if kv.lease else "")
    )


def _event(is_deletion: bool, at: int, kv: bytes, before: int) -> str:
    text = f"delete {key_of(kv).decode()}" if is_deletion else f"put {_kv(kv_pb2.KeyValue.FromString(kv))}"
    return f"{_packed(at)} {text}" + (f" after {_packed(before)}" if before else "")


def _packed(revision: int) -> str:
    return f"{revision >> 24}.{revision & 0xFFFFFF}"


def _lines(*lines: str) -> str:
    return "\n".join(lines) or "nothing"
