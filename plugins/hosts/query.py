"""Asks a DNS server for names, to see whether it answers what a hosts file says. Uses dnspython."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Mapping

import dns.exception
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype

from etcd_agent import idle

MOST_NAMES = 200
_TRY_S = 1.0


def problem(server: str, wanted: Mapping[str, list[str]], timeout_s: float) -> str | None:
    """Why ``server`` (``address:port``) does not answer the names with these addresses, or None.

    At most MOST_NAMES names are asked for, spread over all of them.
    """
    host, _, port = server.rpartition(":")
    names = sorted(wanted)[:: max(1, -(-len(wanted) // MOST_NAMES))]
    deadline_s = time.monotonic() + timeout_s
    for name in names:
        for version, kind in ((4, dns.rdatatype.A), (6, dns.rdatatype.AAAA)):
            expected = {each for each in wanted[name] if ipaddress.ip_address(each).version == version}
            if not expected:
                continue
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return f"not all names were answered in {timeout_s:g} s"
            question = dns.message.make_query(name, kind)
            try:
                with idle():
                    answer = dns.query.udp(
                        question, host.strip("[]"), port=int(port), timeout=min(left_s, _TRY_S)
                    )
            except (OSError, dns.exception.DNSException) as error:
                return f"{name}: no answer: {type(error).__name__}"
            found = {str(item) for each in answer.answer if each.rdtype == kind for item in each}
            if found != expected:
                said = ", ".join(sorted(found)) or dns.rcode.to_text(answer.rcode())
                return f"{name}: answered with {said}, expected {', '.join(sorted(expected))}"
    return None
