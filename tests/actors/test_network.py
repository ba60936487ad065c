"""The interface that gloo and NCCL are told to use."""

from __future__ import annotations

import psutil
import pytest

from actors.process.network import INTERFACE_VARIABLES, LOOPBACK, address_towards, interface_of, use_interface_of


@pytest.mark.parametrize("address", [LOOPBACK, "127.0.0.2", "::1"])
def test_every_loopback_address_is_on_the_loopback_interface(address: str) -> None:
    assert interface_of(address) in ("lo", "lo0")


def test_the_interface_is_the_one_that_holds_the_address() -> None:
    for name, entries in psutil.net_if_addrs().items():
        for entry in entries:
            if entry.family.name in ("AF_INET", "AF_INET6") and not entry.address.startswith("127."):
                assert interface_of(entry.address.partition("%")[0]) == name


def test_an_address_that_no_interface_holds_is_refused_with_what_to_do() -> None:
    with pytest.raises(ConnectionError, match=r"no network interface of this node holds 203\.0\.113\.7 \(.*127\.0\.0\.1.*--node-ip"):
        interface_of("203.0.113.7")


def test_what_the_user_has_named_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    gloo, nccl = INTERFACE_VARIABLES
    monkeypatch.setattr("os.environ", environment := {gloo: "eth7"})
    use_interface_of(LOOPBACK)
    assert environment == {gloo: "eth7", nccl: interface_of(LOOPBACK)}
    environment[nccl] = "ib0"
    use_interface_of("203.0.113.7")
    assert environment == {gloo: "eth7", nccl: "ib0"}


def test_a_machine_is_reached_over_loopback_by_itself() -> None:
    assert address_towards(LOOPBACK) == LOOPBACK
