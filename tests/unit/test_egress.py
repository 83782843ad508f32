"""Which addresses are the Internet's: every special block by its first and last address, and its neighbours."""

import re
import tomllib
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.sinks.egress import Address, blocked, is_public, plain, refusal

# each with public addresses on both sides, where there is another side
BLOCKS = {
    "this machine": "0.0.0.0/8",
    "private, 10": "10.0.0.0/8",
    "carrier's NAT": "100.64.0.0/10",
    "loopback": "127.0.0.0/8",
    "Azure": "168.63.129.16/32",
    "link-local": "169.254.0.0/16",
    "private, 172": "172.16.0.0/12",
    "protocol assignments": "192.0.0.0/24",
    "documentation 1": "192.0.2.0/24",
    "6to4 relays": "192.88.99.0/24",
    "private, 192": "192.168.0.0/16",
    "benchmarking": "198.18.0.0/15",
    "documentation 2": "198.51.100.0/24",
    "documentation 3": "203.0.113.0/24",
    "multicast and reserved": "224.0.0.0/3",
    "IPv6 below global unicast": "::/3",
    "IPv6 protocol assignments": "2001::/23",
    "IPv6 documentation 1": "2001:db8::/32",
    "6to4": "2002::/16",
    "IPv6 documentation 2": "3fff::/20",
}


def is_blocked(address: str) -> bool:
    return bool(blocked([plain(ip_address(address))], ()))


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_a_special_block_is_not_public_and_its_neighbours_are(block: str) -> None:
    network = ip_network(block)
    assert not is_public(network[0])
    assert not is_public(network[-1])
    total = 2**network.max_prefixlen
    for neighbour in (int(network[0]) - 1, int(network[-1]) + 1):
        if 0 <= neighbour < total:
            assert is_public(type(network[0])(neighbour)), neighbour


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "169.254.170.2",
        "fd00:ec2::254",
        "fd20:ce::254",
        "100.100.100.200",
        "192.0.0.192",
        "255.255.255.255",
        "239.255.255.250",
        "192.0.0.8",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "::ffff:0:127.0.0.1",
        "::127.0.0.1",
        "::8.8.8.8",
        "64:ff9b::127.0.0.1",
        "64:ff9b::8.8.8.8",
        "64:ff9b:1::7f00:1",
        "100::1",
        "2001::1",
        "2001:0:7f00:1::1",
        "2001:2::1",
        "2001:10::1",
        "2001:20::1",
        "2002:7f00:1::1",
        "2002:808:808::1",
        "4000::",
        "5f00::1",
        "fc00::1",
        "fdff::1",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
        "ff0e::1",
    ],
)
def test_what_leads_inside_is_blocked(address: str) -> None:
    assert is_blocked(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "2a00:1450::1", "::ffff:8.8.8.8"])
def test_the_internet_is_not_blocked(address: str) -> None:
    assert not is_blocked(address)


@given(st.ip_addresses().map(plain))
def test_nothing_is_public_that_the_standard_library_calls_special(address: Address) -> None:
    if is_public(address):
        assert address.is_global
        assert not address.is_multicast


def test_one_blocked_address_is_found_among_any_number() -> None:
    inside, outside = ip_address("10.0.0.1"), ip_address("8.8.8.8")
    assert blocked([outside, inside], ()) == [inside]
    assert blocked([inside, outside], ()) == [inside]
    assert blocked([outside], ()) == []


@pytest.mark.parametrize(
    ("address", "network", "lets"),
    [
        ("10.1.2.3", "10.0.0.0/8", True),
        ("10.1.2.3", "10.1.2.3/32", True),
        ("10.1.2.4", "10.1.2.3/32", False),
        ("127.0.0.1", "10.0.0.0/8", False),
        ("::ffff:10.1.2.3", "10.0.0.0/8", True),
        ("::1", "127.0.0.0/8", False),
        ("fd00::1", "fd00::/8", True),
        ("fe80::1%eth0", "fe80::/10", True),
        ("64:ff9b::8.8.8.8", "64:ff9b::/96", True),
        ("8.8.8.8", "10.0.0.0/8", True),
    ],
)
def test_a_network_lets_through_what_is_in_it(address: str, network: str, lets: bool) -> None:
    refused = blocked([plain(ip_address(address))], [ip_network("198.18.0.0/15"), ip_network(network)])
    assert (not refused) == lets


@pytest.mark.parametrize(
    "addresses", [["127.0.0.1"], ["::1", "127.0.0.1"], ["fe80::1%7"], ["10.0.0.1", "fd00::1", "192.168.0.1"]]
)
def test_refusal_has_the_line_that_lets_every_address_through(addresses: list[str]) -> None:
    refused = [ip_address(address) for address in addresses]
    text = refusal(refused)
    assert text.startswith(f"{addresses[0]} is not a public address and in no network of egress_allow; ")
    [line] = re.findall(r"egress_allow = .*\]", text)
    named = tomllib.loads(line)["egress_allow"]
    assert blocked(refused, [ip_network(network) for network in named]) == []
