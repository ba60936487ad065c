"""A call in a thread beside the driver's work: each side ends the other."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from actors.training.job import TrainingCancelledError
from loop.run import background
from loop.run.background import in_background


class Work:
    """A call that goes on until it is released or cancelled."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.cancelled, self.released = threading.Event(), threading.Event()
        self.error = error

    def __call__(self) -> int:
        while not self.released.is_set():
            if self.cancelled.wait(0.01):
                raise self.error or TrainingCancelledError("the training was cancelled")
        if self.error is not None:
            raise self.error
        return 7


def test_the_result_of_a_call_is_that_of_the_function() -> None:
    work = Work()
    with in_background(work, work.cancelled.set, "training") as call:
        call.check()
        work.released.set()
        assert call.result() == 7
    assert call.elapsed_s > 0
    assert not work.cancelled.is_set()


def test_what_the_call_raises_ends_the_block_at_its_next_check() -> None:
    work = Work(ValueError("the loss is not finite"))
    work.released.set()

    def block() -> None:
        with in_background(work, work.cancelled.set, "training") as call:
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                call.check()

    with pytest.raises(ValueError, match="the loss is not finite"):
        block()
    assert not work.cancelled.is_set(), "it has ended by itself"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("no engine is left")])
def test_what_ends_the_block_cancels_the_call_and_waits_for_it(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    work = Work()
    with pytest.raises(type(error)), in_background(work, work.cancelled.set, "training") as call:
        raise error
    assert not call._thread.is_alive()
    assert caplog.messages == [], "that it was cancelled is no news"


def test_a_call_that_fails_while_it_is_cancelled_is_reported_beside_the_error(caplog: pytest.LogCaptureFixture) -> None:
    work = Work(OSError("the disk is full"))
    with caplog.at_level(logging.WARNING), pytest.raises(RuntimeError), in_background(work, work.cancelled.set, "training"):
        raise RuntimeError("no engine is left")
    assert caplog.messages == ["training has failed as well: OSError: the disk is full"]


def test_a_call_that_cannot_be_cancelled_is_not_waited_for_without_end(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "_CANCEL_S", 0.2)
    work = Work()
    with pytest.raises(RuntimeError), in_background(work, lambda: None, "training"):
        raise RuntimeError("no engine is left")
    assert caplog.messages == ["training was cancelled and has not ended after 0.2 s; it ends with this process"]
    work.released.set()
