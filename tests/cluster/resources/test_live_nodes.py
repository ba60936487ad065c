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
    now[0] = 1.5
    assert not nodes.has("here")
