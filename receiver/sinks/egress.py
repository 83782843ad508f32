"""Where a sink may connect to: public addresses, and the networks its settings name."""

import ipaddress
from collections.abc import Collection, Iterable
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# all others are for one network, one machine or no machine at all, or hold an IPv4 address
_GLOBAL_IPV6: Final = ipaddress.IPv6Network("2000::/3")

# named here and not taken from `is_global`, which says something else in every version of Python
_NOT_PUBLIC: Final = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",  # this machine
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # behind a carrier's NAT
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's own services, reached from within only
        "169.254.0.0/16",  # link-local, where clouds keep credentials
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarking
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
        "2001::/23",  # protocol assignments: Teredo, benchmarking, ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "3fff::/20",  # documentation
    )
)


def plain(address: Address) -> Address:
    """An IPv4 address that is written as an IPv6 one (`::ffff:a.b.c.d`) as what it is."""
    return getattr(address, "ipv4_mapped", None) or address


def is_public(address: Address) -> bool:
    """Whether an address is one of the Internet's, where anybody may reach it."""
    if address.version == 6 and address not in _GLOBAL_IPV6:
        return False
    return not any(address in network for network in _NOT_PUBLIC)


def first_blocked(addresses: Iterable[Address], allowed: Collection[Network]) -> Address | None:
    """The first address that is neither public nor in a network that is allowed; one of them condemns all."""
    return next((one for one in addresses if not is_public(one) and not any(one in net for net in allowed)), None)
