"""Runs in an object store: a real S3 server, conditional writes, leases, the number of requests, and errors."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from loop import errors
from loop.store import fencing, run_store
from loop.store.documents import Lease, seal
from loop.store.fencing import LOCK
from loop.store.run_store import Store
from loop.store.storage import objects, open_storage
from tests.loop.store.make_run import RUN, checkpoint, commit_of, records

Act = Callable[[], object]


@pytest.fixture
def uri(s3_uri: str) -> str:
    return s3_uri


def test_files_are_listed_and_removed(uri: str) -> None:
    storage = open_storage(uri)
    for path in ("a/b/c", "a/d", "ab"):
        storage.write(path, b"12")
    assert storage.names("a") == ["b", "d"]
    assert storage.sizes("a") == {"a/b/c": 2, "a/d": 2}
    assert (storage.size("a/d"), storage.size("a"), storage.names("none")) == (2, None, [])
    storage.remove("a")
    storage.remove("none")
    assert storage.sizes("a") == {}
    storage.remove("ab")
    assert storage.size("ab") is None


# ---- two drivers


def commit_and_read(store: Store) -> Act:
    commit = commit_of(store, metrics={"epoch": float(store.epoch)})
    store.commit(commit)
    return lambda: Store.open(store.uri).commits() == [commit]


def part_and_read(store: Store) -> Act:
    part = store.write_part(0, "shard", records(store.epoch))
    return lambda: Store.open(store.uri).finished_part(0, "shard") == part


def checkpoint_and_read(store: Store) -> Act:
    receipt = checkpoint(store, "base", b"of %d" % store.epoch)
    return lambda: Store.open(store.uri).finished_checkpoint("base") == receipt


class Takeover:
    """In place of `check_fence`: right after check `number` of the first driver has passed, a second one takes over and writes."""

    def __init__(self, first: Store, number: int, write: Callable[[Store], Act]) -> None:
        self.first, self.number, self.write = first, number, write
        self.num_checks = 0
        self.is_intact: Act = lambda: False

    def __call__(self, run: Store, lease: Lease | None) -> None:
        fencing.check_fence(run, lease)
        if lease == self.first.lease:
            self.num_checks += 1
            if self.num_checks == self.number:
                second = Lease(epoch=self.first.epoch + 1, pid=1, host="other", acquired_at=1.0)
                self.first.storage.write(LOCK, seal(second.model_dump(mode="json")))
                self.is_intact = self.write(Store(self.first.storage, second))


@pytest.mark.parametrize("write", [commit_and_read, part_and_read, checkpoint_and_read])
def test_a_takeover_after_any_check_leaves_the_files_of_the_second_driver(
    uri: str, write: Callable[[Store], Act], monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(number: int) -> Takeover:
        run = Store.create(f"{uri}-{number}", RUN)
        takeover = Takeover(Store(run.storage, fencing.acquire(run)), number, write)
        monkeypatch.setattr(run_store, "check_fence", takeover)
        return takeover

    undisturbed = started(0)
    assert write(undisturbed.first)()
    assert undisturbed.num_checks >= 2
    for number in range(1, undisturbed.num_checks + 1):
        takeover = started(number)
        with pytest.raises(errors.LockedError, match="taken over"):
            write(takeover.first)
        assert takeover.is_intact(), number


def test_of_two_drivers_that_start_at_once_one_drives(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store, barrier, results = Store.create(uri, RUN), threading.Barrier(2), []
    real = type(store.storage).write

    def write(storage: objects.ObjectStorage, path: str, data: bytes, check: Callable[[], None] | None = None) -> None:
        if path == LOCK:
            barrier.wait(10)
        real(storage, path, data, check)

    def drive() -> None:
        try:
            results.append(fencing.acquire(store))
        except errors.LockedError as error:
            results.append(error)

    monkeypatch.setattr(objects.ObjectStorage, "write", write)
    threads = [threading.Thread(target=drive) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(type(one).__name__ for one in results) == ["Lease", "LockedError"]


def lease_of(store: Store, **changes: object) -> None:
    values = {"epoch": 3, "pid": os.getpid(), "host": "elsewhere", "acquired_at": 1.0, **changes}
    store.storage.write(LOCK, seal(Lease.model_validate(values).model_dump(mode="json")))


def test_a_driver_that_is_alive_keeps_its_run_and_one_that_ends_gives_it_back(uri: str) -> None:
    run = Store.create(uri, RUN)
    with run.locked(lease_s=0.8) as first:
        with pytest.raises(errors.LockedError, match="is driven by epoch 1"), Store.open(uri).locked(lease_s=0.8):
            pass
        first.write_part(0, "shard", records())
    with Store.open(uri).locked(lease_s=60) as second:
        assert second.epoch == 2


def test_the_lease_of_a_dead_driver_expires_at_once_here_and_after_a_while_elsewhere(uri: str, caplog: pytest.LogCaptureFixture) -> None:
    run = Store.create(uri, RUN)
    lease_of(run, host=socket.gethostname(), pid=2**22 + 1)
    with run.locked(lease_s=60) as store:
        assert store.epoch == 4
    lease_of(run)
    began = time.monotonic()
    with run.locked(lease_s=0.5) as store:
        assert (store.epoch, time.monotonic() - began >= 0.5) == (4, True)
    assert "waiting up to 0.5 s for its lease to expire" in caplog.text


def test_a_driver_whose_lease_cannot_be_renewed_says_so(uri: str, caplog: pytest.LogCaptureFixture) -> None:
    with Store.create(uri, RUN).locked(lease_s=0.2) as store:
        lease_of(store)
        time.sleep(0.3)
    assert "was not renewed" in caplog.text
    assert "was not given back" in caplog.text


# ---- requests and errors


def test_a_part_takes_few_requests_and_looking_for_absent_ones_takes_one(uri: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "werkzeug")

    def requests(act: Act) -> int:
        caplog.clear()
        act()
        return len([one for one in caplog.records if one.name == "werkzeug"])

    with Store.create(uri, RUN).locked() as store:
        assert requests(lambda: store.write_part(1, "records-00000", records())) <= 7
        assert requests(lambda: store.finished_parts(2, [f"records-{n:05d}" for n in range(50)])) == 1
        parts = [store.write_part(0, f"records-{n:05d}", records()).entry for n in range(6)]
        assert requests(lambda: store.commit(commit_of(store, files=parts))) <= 5


def test_stores_that_cannot_be_used_are_named_in_one_line(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(errors.UserError, match=r"not-a-bucket/x cannot be written: .*check that the bucket exists"):
        Store.create("s3://not-a-bucket/x", RUN)
    with pytest.raises(errors.UserError, match=r"parameters \['color'\]; expected some of"):
        Store.open("s3://bucket/x?color=red")
    with pytest.raises(errors.NoRunError):
        Store.open(uri)
    monkeypatch.setattr(objects, "_RETRIES", {"max_retries": 0})
    with pytest.raises(errors.StoreError, match=r"^cannot read s3://bucket/other.*check that the bucket exists[^\n]*$"):
        Store.open("s3://bucket/other?endpoint_override=127.0.0.1:9&scheme=http")


class Careless(BaseHTTPRequestHandler):
    """A server that writes whatever it is told to, whether the object exists or not."""

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("ETag", '"1"')
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_server_that_ignores_conditions_is_refused(uri: str) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Careless) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(errors.UserError, match="ignores conditional writes"):
            Store.create(f"s3://bucket/x?endpoint_override=127.0.0.1:{server.server_address[1]}&scheme=http", RUN)
        server.shutdown()


def test_a_bucket_without_rights_is_one_line_with_the_stores_reason(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from moto import settings

    monkeypatch.setattr(settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0.0)  # the server asks for known keys from now on
    reason = r".* 403 Forbidden: InvalidAccessKeyId: The AWS Access Key Id you provided does not exist in our records\.; check that"
    with pytest.raises(errors.UserError, match=rf"^{s3_uri} cannot be written: {reason} the bucket exists and that its .* are right"):
        Store.create(s3_uri, RUN)
