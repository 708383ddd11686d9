"""One process at a time writes into a training's directory."""

import os
import signal
import socket
import sys

import pytest

from tests.training.processes import preloaded
from tightframe.errors import OutputError, ResumeError
from tightframe.runs.lock import hold

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no flock")


def _holding(directory, ready, wait):
    with hold(directory, wait=wait):
        ready.set()
        signal.pause()


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of ``tmp_path / "a"``."""
    ready = preloaded().Event()
    process = preloaded().Process(target=_holding, args=(tmp_path / "a", ready, False))
    process.start()
    assert ready.wait(60)
    yield process
    process.kill()
    process.join()


def test_a_second_process_is_told_who_holds_the_lock(tmp_path, holder):
    seen = f"a is being written by process {holder.pid} on {socket.gethostname()} since .*choose another --out"
    with pytest.raises(ResumeError, match=seen), hold(tmp_path / "a"):
        pass
    with hold(tmp_path / "b"):  # another training
        pass


def test_a_killed_process_holds_nothing(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    for _ in range(2):
        with hold(tmp_path / "a"):
            assert f"process {os.getpid()} " in (tmp_path / "a" / ".lock").read_text()


def test_a_waiting_process_comes_next(tmp_path, holder):
    ready = preloaded().Event()
    second = preloaded().Process(target=_holding, args=(tmp_path / "a", ready, True))
    second.start()
    assert not ready.wait(0.5)
    holder.kill()
    assert ready.wait(60)
    second.kill()
    second.join()


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"), hold(tmp_path / "file" / "x"):
        pass
