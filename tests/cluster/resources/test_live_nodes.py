"""A node is used while Ray lists it as alive and it accepts connections."""

import socket
from typing import Any

from actors.process.network import LOOPBACK
from cluster.resources.nodes import LiveNodes


def test_a_node_that_refuses_connections_is_lost_before_ray_says_so() -> None:
    now = [0.0]
    with socket.create_server((LOOPBACK, 0)) as raylet:
        address, port = raylet.getsockname()
        listed: list[dict[str, Any]] = [
            {"NodeID": name, "Alive": name != "dead", "NodeManagerAddress": address, "NodeManagerPort": port} for name in ("here", "dead")
        ]
        nodes = LiveNodes(lambda: listed, lambda: now[0])
        assert [nodes.has(name) for name in ("here", "dead", "unknown")] == [True, False, False]
    assert nodes.has("here"), "it was asked less than a second ago"
    assert not nodes.has("here", after_fault=True), "an engine has died there: that it lived before says nothing"
    assert not nodes.has("here"), "and nobody asks again for a second"


def test_an_answer_is_good_for_a_second() -> None:
    now = [0.0]
    listed: list[dict[str, Any]] = []
    nodes = LiveNodes(lambda: listed, lambda: now[0])
    with socket.create_server((LOOPBACK, 0)) as raylet:
        address, port = raylet.getsockname()
        assert not nodes.has("new")
        listed.append({"NodeID": "new", "Alive": True, "NodeManagerAddress": address, "NodeManagerPort": port})
        assert not nodes.has("new", after_fault=True), "a lost node is not asked by each of its actors"
        now[0] = 1.5
        assert nodes.has("new")
    now[0] = 3.0
    assert not nodes.has("new")
