"""Who drives a run: one process at a time, under a lease with a fencing epoch.

`lock.json` holds the lease. Each driver increments the epoch, and writes are refused once the lease belongs to another one. In a local
folder, a file lock keeps a second driver out. Behind a URI there is none: a driver renews its lease, and a second one takes the run
over when the lease has not changed for `LEASE_S` seconds on its own clock, so that clocks need not agree. A driver that ends gives
its lease back. The lease of a process of this machine that is no longer alive is taken over at once.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_fixed

from loop.errors import DamagedFileError, LockedError, StoreError
from loop.store.documents import Lease, seal
from loop.store.reading import RunReader

log = logging.getLogger(__name__)

LOCK = "lock.json"
LEASE_S = 60.0
"""Time without renewal after which a lease has expired."""
_RENEWALS_PER_LEASE = 4
_READS_OF_LEASE, _READ_AGAIN_S = 5, 0.1


def holder(run: RunReader) -> Lease | None:
    """The newest lease, of the driver that is working or of the last one. Not every filesystem replaces a file at once: a lease that looks
    damaged may be in the middle of a renewal, and is read again."""
    again = Retrying(
        retry=retry_if_exception_type(DamagedFileError),
        stop=stop_after_attempt(_READS_OF_LEASE),
        wait=wait_fixed(_READ_AGAIN_S),
        reraise=True,
    )
    return again(run.load_if_there, LOCK, Lease)


def check_fence(run: RunReader, lease: Lease | None) -> None:
    """Raise `LockedError` if `lease` is not, or no longer, the run's."""
    if lease is None:
        raise LockedError(f"this handle on {run.uri} only reads; write inside `with store.locked() as store:`")
    found = holder(run)
    if found is None:
        raise DamagedFileError(f"{run.uri}/{LOCK}", f"the lease of {lease}", "no file", "put the run folder back")
    if not found.same_driver(lease):
        raise LockedError(f"{run.uri} was taken over: this driver is {lease}, the current one is {found}; stop this one")


def acquire(run: RunReader, lease_s: float = LEASE_S) -> Lease:
    """Become the run's driver. Without a lock, wait up to `lease_s` seconds for the lease of another driver to expire.

    Raises:
        LockedError: another driver is alive, or was faster.
    """
    previous = holder(run)
    if previous is not None and not run.storage.has_lock and not _is_over(previous):
        previous = _expired(run, previous, lease_s)
    epoch = 1 if previous is None else previous.epoch + 1
    lease = Lease(epoch=epoch, pid=os.getpid(), host=socket.gethostname(), acquired_at=time.time())

    def check_previous() -> None:
        found = holder(run)
        if found != previous:
            raise LockedError(f"{run.uri} is driven by {found}; wait for it or stop it")

    run.storage.write(LOCK, seal(lease.model_dump(mode="json")), check_previous)
    return lease


@contextmanager
def renewed(run: RunReader, lease: Lease, lease_s: float = LEASE_S) -> Iterator[None]:
    """Keep a lease from expiring, and give it back in the end. Nothing to do where there is a lock."""
    if run.storage.has_lock:
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=_renew, args=(run, lease, lease_s / _RENEWALS_PER_LEASE, ended), name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        _write(run, lease.model_copy(update={"released": True}), "given back")


def _renew(run: RunReader, lease: Lease, every_s: float, ended: threading.Event) -> None:
    number = 0
    while not ended.wait(every_s):
        number += 1
        _write(run, lease.model_copy(update={"renewals": number}), "renewed")


def _write(run: RunReader, lease: Lease, what: str) -> None:
    """A lease that cannot be written expires; what this driver writes afterwards is refused if another took over."""
    try:
        run.storage.write(LOCK, seal(lease.model_dump(mode="json")), lambda: check_fence(run, lease))
    except StoreError as error:
        log.warning("the lease of %s was not %s: %s", run.uri, what, error)


def _is_over(lease: Lease) -> bool:
    """Whether a driver has given its lease back, or was a process of this machine that is no longer alive."""
    return lease.released or (lease.host == socket.gethostname() and not psutil.pid_exists(lease.pid))


def _expired(run: RunReader, lease: Lease, lease_s: float) -> Lease | None:
    """Wait until a lease has expired or its driver has ended; returns it as it then is."""
    log.warning("%s is driven by %s; waiting up to %g s for its lease to expire", run.uri, lease, lease_s)
    deadline = time.monotonic() + lease_s
    while time.monotonic() < deadline:
        time.sleep(min(1.0, lease_s / 10))
        found = holder(run)
        if found is None or _is_over(found):
            return found
        if found != lease:
            raise LockedError(f"{run.uri} is driven by {found}; wait for it or stop it")
    return lease
