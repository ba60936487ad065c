import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from ray.exceptions import RayActorError

from actors.engines.base import WeightUpdate
from actors.engines.errors import SwapError, WeightMismatchError
from actors.engines.preloading import load_update, verify
from actors.engines.stream import choose_backend
from actors.engines.vllm.gloo import BroadcastGroup
from actors.engines.weights import digest_of, manifest_of, num_bytes_in, num_bytes_of
from actors.process.network import LOOPBACK
from cluster.fleet.weights import TRANSPORTS, prepare
from cluster.resources.connect import ClusterInfo
from tests.cluster.workers import received, save, update_of, wait_while, weights

WHOLE = sorted(TRANSPORTS.keys() - {"adapter"})
"""Transports of whole weights. An adapter needs a model: `tests.actors.engines.test_adapters`."""


@pytest.mark.parametrize("transport", WHOLE)
def test_a_prepared_update_loads_to_what_was_digested(cluster: ClusterInfo, tmp_path: Path, transport: str) -> None:
    update = prepare(save(tmp_path / "checkpoint", weights(3.0)), "r1-abc", transport)
    tensors = load_update(update)
    verify(update, tensors, manifest_of(weights(0.0)))
    assert update.digest == digest_of(tensors) == digest_of(weights(3.0))
    assert update.manifest == manifest_of(tensors)
    assert num_bytes_in(update.manifest) == num_bytes_of(tensors)
    carried = {"checkpoint": update.checkpoint, "object_store": update.tensors, "native": update.stream}
    assert [name for name, source in carried.items() if source is not None] == [transport]


def test_unknown_transports_and_unreadable_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pigeon.*checkpoint"):
        prepare(tmp_path, "r1", "pigeon")
    (tmp_path / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(WeightMismatchError, match=r"model\.safetensors"):
        prepare(tmp_path, "r1", "checkpoint")


def test_a_known_digest_is_carried_and_not_computed(cluster: ClusterInfo, tmp_path: Path) -> None:
    folder = save(tmp_path, weights(3.0))
    for transport in sorted(TRANSPORTS):  # of the adapter's base, too
        update = prepare(folder, "r1", transport, digest="known")
        assert (update.digest, update.manifest) == ("known", manifest_of(weights(3.0)))


def test_a_checkpoint_changed_after_preparation_is_refused(tmp_path: Path) -> None:
    update = prepare(save(tmp_path, weights(3.0)), "r1", "checkpoint")
    save(tmp_path, weights(4.0))
    with pytest.raises(WeightMismatchError, match="digest"):
        verify(update, load_update(update), manifest_of(weights(0.0)))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"head.weight": torch.zeros(4, 4)}, r"head\.weight: float32\[4, 4\] given, float32\[4, 3\] served"),
        ({"norm.bias": torch.zeros(3)}, r"norm\.bias: float32\[3\] given, bfloat16\[3\] served"),
        ({"extra": torch.zeros(1)}, r"extra: float32\[1\] given, nothing served"),
        ({"norm.bias": None}, r"norm\.bias: nothing given"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, torch.Tensor | None], expected: str) -> None:
    merged = {**weights(1.0), **change}
    tensors = {name: tensor for name, tensor in merged.items() if tensor is not None}
    with pytest.raises(WeightMismatchError, match=expected):
        verify(update_of(tensors, "r1"), tensors, manifest_of(weights(0.0)))


def test_an_update_carries_exactly_one_source(tmp_path: Path) -> None:
    tensors = weights(1.0)
    for update in (
        WeightUpdate("r1", digest_of(tensors), manifest_of(tensors)),
        WeightUpdate("r1", digest_of(tensors), manifest_of(tensors), checkpoint=tmp_path, tensors=tensors),
    ):
        with pytest.raises(ValueError, match="exactly one"):
            load_update(update)


# ---- the native transport


@pytest.fixture(scope="module")
def streamed(cluster: ClusterInfo, tmp_path_factory: pytest.TempPathFactory) -> WeightUpdate:
    """An update whose weights a sender holds."""
    return prepare(save(tmp_path_factory.mktemp("streamed"), weights(3.0)), "r1", "native")


def listening_addresses(process: psutil.Process, excluded: set[int]) -> set[str]:
    return {one.laddr.ip for one in process.net_connections() if one.status == "LISTEN" and one.laddr.port not in excluded}


def test_a_sender_serves_all_workers_of_several_engines_at_the_same_time(streamed: WeightUpdate) -> None:
    stream = streamed.stream
    assert stream is not None
    offer = stream.offer(streamed.digest)
    assert (offer.manifest, offer.gpu) == (streamed.manifest, "")
    transfers = [stream.open("gloo", streamed.digest, 2) for _ in range(3)]
    sent = [stream.send(transfer) for transfer in transfers]
    with ThreadPoolExecutor(6) as workers:
        found = list(workers.map(received, transfers * 2, [1] * 3 + [2] * 3))
    ray.get(sent, timeout=20)
    assert [digest_of(tensors) for tensors in found] == [streamed.digest] * 6


def test_a_transfer_on_one_machine_listens_on_loopback_only(streamed: WeightUpdate) -> None:
    stream = streamed.stream
    assert stream is not None
    sender = psutil.Process(ray.get(stream.sender.__ray_call__.remote(_pid), timeout=20))
    before = {one.laddr.port for one in sender.net_connections() if one.status == "LISTEN"}
    transfer = stream.open("gloo", streamed.digest, 2)
    sent = stream.send(transfer)
    with ThreadPoolExecutor(2) as workers:
        first = workers.submit(received, transfer, 1)
        wait_while(lambda: not listening_addresses(sender, {*before, transfer.port or 0}))  # gloo's own, beside the rendezvous
        assert listening_addresses(sender, before) == {LOOPBACK}
        workers.submit(received, transfer, 2).result(20)
        first.result(20)
    ray.get(sent, timeout=20)


def test_a_sender_refuses_what_was_not_prepared(streamed: WeightUpdate) -> None:
    with pytest.raises(WeightMismatchError, match=r"holds weights with digest .* 0000 was prepared"):
        _open(replace(streamed, digest="0000"))


@pytest.mark.slow
def test_a_lost_sender_is_replaced_unless_its_checkpoint_has_changed(cluster: ClusterInfo, tmp_path: Path) -> None:
    update = prepare(save(tmp_path, weights(3.0)), "r1", "native")
    assert update.stream is not None
    _restart(update.stream.sender)
    assert digest_of(load_update(update)) == update.digest
    save(tmp_path, weights(4.0))
    _restart(update.stream.sender)
    with pytest.raises(WeightMismatchError, match=f"{update.digest} was prepared"):
        _open(update)
    ray.kill(update.stream.sender)
    with pytest.raises(SwapError, match="lost"):
        load_update(update)


def test_a_sender_lives_as_long_as_its_published_update(cluster: ClusterInfo, tmp_path: Path) -> None:
    update = prepare(save(tmp_path, weights(3.0)), "r1", "native")
    assert update.stream is not None
    sender = psutil.Process(ray.get(update.stream.sender.__ray_call__.remote(_pid), timeout=20))
    published = [ray.put(update)]
    del update
    with pytest.raises(psutil.TimeoutExpired):
        sender.wait(2)
    assert ray.get(ray.remote(num_cpus=0)(_digest_of_update).remote(published[0]), timeout=30) == digest_of(weights(3.0))
    published.clear()
    sender.wait(20)


def test_a_group_waits_for_nobody_longer_than_it_was_told() -> None:
    started = time.monotonic()
    with pytest.raises(RuntimeError):  # nobody listens
        BroadcastGroup(LOOPBACK, _free_port(), rank=1, world_size=2, timeout_s=1)
    listener = socket.create_server((LOOPBACK, 0))
    port = listener.getsockname()[1]
    with ThreadPoolExecutor(1) as other:
        silent = other.submit(BroadcastGroup, LOOPBACK, port, rank=0, world_size=2, timeout_s=5, listener=listener)
        group = BroadcastGroup(LOOPBACK, port, rank=1, world_size=2, timeout_s=2)
        silent.result()
        with pytest.raises(RuntimeError):
            group.broadcast(torch.zeros(3))
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("sender", "workers", "expected"),
    [
        ("a", ["a"], "ipc"),
        ("a", ["b"], "nccl"),
        ("a", ["b", "c"], "nccl"),
        ("a", ["a", "b"], "gloo"),
        ("", ["a"], "gloo"),
        ("a", [""], "gloo"),
        ("", [""], "gloo"),
    ],
)
def test_the_backend_follows_from_where_the_weights_and_the_workers_are(sender: str, workers: list[str], expected: str) -> None:
    assert choose_backend(sender, workers) == expected


def _open(update: WeightUpdate) -> None:
    assert update.stream is not None
    update.stream.open("gloo", update.digest, 1)


def _restart(sender: Any) -> None:
    """Kills the sender's process, and returns when another has taken its place."""
    lost = ray.get(sender.__ray_call__.remote(_pid), timeout=20)
    ray.kill(sender, no_restart=False)

    def is_away() -> bool:
        try:
            return ray.get(sender.__ray_call__.remote(_pid), timeout=20) == lost
        except RayActorError:
            return True

    wait_while(is_away)


def _pid(_actor: Any) -> int:
    return psutil.Process().pid


def _digest_of_update(update: WeightUpdate) -> str:
    return digest_of(load_update(update))


def _free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as listener:
        return listener.getsockname()[1]
