"""Which addresses are of the public internet: all others are refused unless `Config.http_private`.

Sources: the IANA special-purpose address registries (RFC 6890, 8190); RFC 4291 (IPv4-mapped and -compatible),
RFC 6052 and 8215 (NAT64), RFC 3056 (6to4), RFC 4380 (Teredo), RFC 5214 (ISATAP).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_REFUSED_V4 = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.31.196.0/24",
            "192.52.193.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "192.175.48.0/24",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",
            "240.0.0.0/4",
            "168.63.129.16/32",  # Azure's metadata and DNS, on a public address
        ),
    )
)
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
_REFUSED_V6 = tuple(map(ipaddress.IPv6Network, ("2001::/23", "2001:db8::/32", "2620:4f:8000::/48", "3fff::/20")))
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_6TO4 = ipaddress.IPv6Network("2002::/16")
_ISATAP = (0x00005EFE, 0x02005EFE)


def is_public(address: Address) -> bool:
    """Whether a packet to it can only go to the public internet."""
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in net for net in _REFUSED_V4)
    if address.scope_id is not None:
        return False
    embedded = list(_embedded(address))
    if not all(map(is_public, embedded)):
        return False
    if address in _MAPPED or address in _NAT64:
        return True
    return address in _GLOBAL_V6 and not any(address in net for net in _REFUSED_V6)


def is_unicast(address: Address) -> bool:
    """Whether it names one host at all: what holds even where private addresses are allowed."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    address = mapped or address
    return not (address.is_multicast or address.is_unspecified or address == ipaddress.IPv4Address("255.255.255.255"))


def parse(text: str) -> Address | None:
    """The address that `text` spells, as resolvers spell them; None if it is none."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def refused(texts: Iterable[str], *, allow_private: bool) -> str | None:
    """The first of these addresses that may not be connected to, or None."""
    for text in texts:
        address = parse(text)
        if address is None or not (is_unicast(address) if allow_private else is_public(address)):
            return text
    return None


def _embedded(address: ipaddress.IPv6Address) -> Iterator[ipaddress.IPv4Address]:
    """IPv4 addresses that a translator or a tunnel may deliver packets for `address` to."""
    value = int(address)
    low = value & 0xFFFFFFFF
    if address in _MAPPED or address in _NAT64 or (value >> 32) & 0xFFFFFFFF in _ISATAP:
        yield ipaddress.IPv4Address(low)
    if address in _6TO4:
        yield ipaddress.IPv4Address((value >> 80) & 0xFFFFFFFF)
