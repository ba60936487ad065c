"""Which network interface gloo and NCCL use. Left alone, gloo offers the address that the machine's own name resolves to, often 127.0.0.1,
and NCCL takes the first interface it likes; neither need be the one by which the other nodes reach this one."""

from __future__ import annotations

import ipaddress
import os
import socket

import psutil

LOOPBACK = "127.0.0.1"
INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def use_interface_of(address: str) -> None:
    """Have gloo and NCCL in this process use the interface that holds `address`. One that the user has named in the environment stays.

    Raises:
        ConnectionError: no interface holds the address, and the user has not named one for both.
    """
    unnamed = [name for name in INTERFACE_VARIABLES if not os.environ.get(name)]
    if unnamed:
        os.environ.update(dict.fromkeys(unnamed, interface_of(address)))


def interface_of(address: str) -> str:
    """The name of the interface that holds an IPv4 or IPv6 address.

    Raises:
        ConnectionError: there is none; the message names those there are.
    """
    wanted = ipaddress.ip_address(address)
    held = {name: [one for entry in entries if (one := _address(entry.address))] for name, entries in psutil.net_if_addrs().items()}
    for name, addresses in held.items():
        # All of 127.0.0.0/8 reaches the loopback interface, which lists only one address of it.
        if wanted in addresses or (wanted.is_loopback and any(one.is_loopback for one in addresses)):
            return name
    there = "; ".join(f"{name}: {', '.join(map(str, addresses))}" for name, addresses in held.items() if addresses)
    raise ConnectionError(
        f"no network interface of this node holds {address} ({there}); start its Ray with --node-ip-address set to one of these, or set "
        f"{' and '.join(INTERFACE_VARIABLES)} there to the interface by which other nodes reach it"
    )


def address_towards(peer: str) -> str:
    """The address of this machine by which `peer` reaches it. Sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unconnected:
        unconnected.connect((peer, 1))
        return unconnected.getsockname()[0]


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text.partition("%")[0])  # an IPv6 address may name its interface
    except ValueError:
        return None  # of the hardware
