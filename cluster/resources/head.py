"""Asks the head of a Ray cluster whether this process can join. Ray itself would try for 20 seconds, and then not say what is wrong."""

from __future__ import annotations

import json
import os
import platform
import socket
import time
from pathlib import Path

import grpc
import ray
from ray._private.authentication.authentication_token_setup import AUTH_MODE_ENV_VAR
from ray._private.utils import check_version_info
from ray._raylet import AuthenticationTokenLoader, Config  # pyright: ignore[reportAttributeAccessIssue]
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc
from ray.exceptions import AuthenticationError

from cluster.errors import AddressError, short_message

_LEAST_WAIT_S = 0.5
_TOKEN = "token"
_HOW = (
    "put the head's ~/.ray/auth_token at the same place here (mode 600), or set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH; "
    "every node and the driver need the same token"
)


def check_head(address: str, name: str, deadline: float) -> None:
    """Return if a Ray head at `HOST:PORT` accepts this process. Uses a token that is here if the head asks for one: Ray does so only for
    the address `auto`, while a head that was started beside a token file asks for it.

    Args:
        address: of the head.
        name: of the address in errors.
        deadline: on the monotonic clock.

    Raises:
        OSError: no Ray head answers.
        AddressError: the head refuses the token, or runs another Ray or Python.
    """
    host, _, port = address.rpartition(":")
    timeout_s = max(_LEAST_WAIT_S, deadline - time.monotonic())
    socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s).close()
    if os.environ.get("RAY_USE_TLS", "0").lower() not in ("0", "false", ""):
        return
    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout_s)
        except grpc.FutureTimeoutError as error:
            raise ConnectionError("the service at this address is not a Ray head") from error
        versions = _versions(channel, None, timeout_s)
        if versions is None:
            versions = _versions(channel, _token(name), timeout_s)
            if versions is None:
                raise AddressError(f"the Ray cluster at {name} refuses the token in {_place()}; {_HOW}")
    if problem := version_problem(versions):
        raise AddressError(f"the Ray cluster at {name} {problem}")


def version_problem(versions: dict[str, str]) -> str:
    """Why a driver with this Ray and Python cannot join a cluster with these versions; empty if it can, or if the head does not say."""
    if not versions:
        return ""
    try:
        check_version_info(versions, "")
    except RuntimeError:
        return (
            f"runs Ray {versions['ray_version']} with Python {versions['python_version']}, and this driver Ray {ray.__version__} with "
            f"Python {platform.python_version()}; install the same versions on both"
        )
    return ""


def _versions(channel: grpc.Channel, token: str | None, timeout_s: float) -> dict[str, str] | None:
    """The versions that a head gives; None if it refuses the token. Raises `ConnectionError` if it is none."""
    request = gcs_service_pb2.InternalKVGetRequest(  # pyright: ignore[reportAttributeAccessIssue]
        key=b"CLUSTER_METADATA", namespace=b"cluster"
    )
    metadata = [] if token is None else [("authorization", f"Bearer {token}")]
    try:
        reply = gcs_service_pb2_grpc.InternalKVGcsServiceStub(channel).InternalKVGet(request, timeout=timeout_s, metadata=metadata)
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:  # pyright: ignore[reportAttributeAccessIssue]
            return None
        if error.code() == grpc.StatusCode.UNIMPLEMENTED:  # pyright: ignore[reportAttributeAccessIssue]
            raise ConnectionError("the service at this address is not a Ray head; take the port of `ray start --head --port`") from error
        raise ConnectionError(short_message(error)) from error
    return json.loads(reply.value) if reply.value else {}


def _token(name: str) -> str:
    """The token of this machine, which Ray is told to use."""
    loader = AuthenticationTokenLoader.instance()
    loader.reset_cache()  # it may be that of another Ray
    try:
        found = loader.has_token(ignore_auth_mode=True)
    except AuthenticationError as error:
        raise AddressError(f"the Ray cluster at {name} asks for a token: {short_message(error)}") from error
    if not found:
        raise AddressError(f"the Ray cluster at {name} asks for a token, and there is none in {_place()}; {_HOW}")
    mode = os.environ.setdefault(AUTH_MODE_ENV_VAR, _TOKEN)
    if mode.lower() != _TOKEN:
        raise AddressError(f"the Ray cluster at {name} asks for a token, and {AUTH_MODE_ENV_VAR} is {mode} here; set it to {_TOKEN}")
    Config.initialize("")  # Ray has read the environment on import
    return loader.get_raw_token(ignore_auth_mode=True)


def _place() -> str:
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN"
    return os.environ.get("RAY_AUTH_TOKEN_PATH") or str(Path.home() / ".ray" / "auth_token")
