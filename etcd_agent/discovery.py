"""The store's members from DNS SRV records, as etcd's own clients find them.

``srv_domain`` means ``_etcd-client-ssl._tcp.DOMAIN`` (https) and ``_etcd-client._tcp.DOMAIN`` (http);
``srv_record`` names one record in full. Who has certificates configured is never sent to a member without
TLS. What DNS answers is only where to go: a member's certificate must be for the domain (see ``follow``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn

import dns.exception
import dns.resolver
from dns.rdtypes.IN.SRV import SRV

from etcd_agent.errors import StoreError
from etcd_agent.values import AgentConfig, Srv
from etcd_client.transport import ConnectFailed, Request

_HOST = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


def resolver() -> dns.resolver.Resolver:
    """The host's own, of /etc/resolv.conf. Raises StoreError."""
    try:
        return dns.resolver.Resolver()
    except (dns.exception.DNSException, OSError) as error:
        raise StoreError(f"store: /etc/resolv.conf cannot be used: {error}") from error


def members(config: AgentConfig, asked: dns.resolver.Resolver | None = None) -> tuple[str, ...]:
    """The URLs of the members that DNS names now, those with TLS first, otherwise in the records' order.

    Waits up to ``dial_timeout`` for each record. Raises StoreError, one line: no such record, no answer in
    time, or that what is there must not be used.
    """
    assert config.srv is not None
    asked = asked or resolver()
    secure = config.credentials.client_cakeys is not None or config.credentials.client_cert is not None
    found: dict[str, None] = {}
    problems: list[str] = []
    for record, scheme in _records(config.srv, secure):
        try:
            answer = asked.resolve(f"{record}.", "SRV", lifetime=config.backend.dial_timeout_s, search=False)
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            problems.append(f"there is no SRV record {record}")
        except dns.exception.Timeout:
            problems.append(f"SRV {record}: no answer in {config.backend.dial_timeout_s:g} s")
        except dns.resolver.NoNameservers:
            problems.append(f"SRV {record}: refused, or failed, by every name server")
        except (dns.exception.DNSException, OSError) as error:
            problems.append(f"SRV {record}: {type(error).__name__}: {error}")
        else:
            assert answer.rrset is not None
            for each in answer.rrset.processing_order():
                assert isinstance(each, SRV)
                target = each.target.to_text(omit_final_dot=True)
                if _HOST.fullmatch(target):  # "." says that there is none (RFC 2782)
                    found[f"{scheme}://{target}:{each.port}"] = None
            if not found:
                problems.append(f"SRV {record}: names no member")
    if not found:
        raise StoreError(f"store: {'; '.join(problems)}")
    return tuple(found)


def _records(srv: Srv, secure: bool) -> list[tuple[str, str]]:
    """What to ask for, and the scheme of what it names."""
    if srv.record is not None:
        service = srv.record.split(".", 1)[0]
        return [(srv.record, "https" if secure or service.endswith("-ssl") else "http")]
    with_tls = (f"_etcd-client-ssl._tcp.{srv.domain}", "https")
    return [with_tls] if secure else [with_tls, (f"_etcd-client._tcp.{srv.domain}", "http")]


@dataclass(frozen=True, slots=True)
class Nowhere:
    """The transport of a client whose members are not known: every request fails with ``reason``."""

    reason: str

    def send(self, request: Request) -> NoReturn:
        raise ConnectFailed(self.reason)

    def close(self) -> None:
        """There is nothing to close."""
