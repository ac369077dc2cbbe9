# SPDX-License-Identifier: MIT
"""A gmsd of one's own, and second processes: for the tests here, and those of tests/gpu."""
import contextlib
import ctypes
import os
import pathlib
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback

BUILD = (pathlib.Path(__file__).resolve().parents[2] / os.environ.get("BUILD", "build")).resolve()
GMSD = os.environ.get("GMSD", str(BUILD / "gmsd"))
GMSCTL = os.environ.get("GMSCTL", str(BUILD / "gmsctl"))


_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl


def _end_with_parent():
    """A test that dies by a signal leaves no daemon."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Daemon:
    """gmsd on a socket of its own. `device` and `environment` make it one with a GPU, a real one or the fake driver's."""

    def __init__(self, device="host:1G", environment=None):
        self.dir = tempfile.mkdtemp(prefix="gms-python.")
        self.socket = os.path.join(self.dir, "sock")
        with open(os.path.join(self.dir, "log"), "wb") as log:
            self.process = subprocess.Popen([GMSD, "--socket", self.socket, "--device", device], stdout=log, stderr=log,
                                            env={**os.environ, **(environment or {})}, preexec_fn=_end_with_parent)
        for _ in range(1000):
            if os.path.exists(self.socket):
                return
            time.sleep(0.01)
        log = pathlib.Path(self.dir, "log").read_text()
        self.stop()
        raise RuntimeError(f"gmsd did not start: {log}")

    def stop(self):
        self.process.terminate()
        self.process.wait(30)
        shutil.rmtree(self.dir)


class Child:
    """A process that runs a function, which gets this object; what it returns is result()'s."""

    def __init__(self, run, limit=60):
        self.read, write = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                os.close(self.read)
                signal.alarm(limit)
                self.pipe = os.fdopen(write, "wb")
                self.send(("returned", run(self)))
                status = 0
            except BaseException as e:
                with contextlib.suppress(OSError):
                    self.send(("raised", f"{type(e).__name__}: {e}\n{traceback.format_exc()}"))
            finally:
                os._exit(status)
        os.close(write)
        self.pipe = os.fdopen(self.read, "rb")

    def send(self, what):
        """In the child: tells the parent, which gets it by receive()."""
        pickle.dump(what, self.pipe)
        self.pipe.flush()

    def receive(self):
        """What the child sent next. If it failed instead, so does this."""
        try:
            what = pickle.load(self.pipe)
        except EOFError:
            raise AssertionError(f"the child ended without a word, by signal {self.wait()}") from None
        if isinstance(what, tuple) and what and what[0] == "raised":
            self.wait()
            raise AssertionError(f"in the child: {what[1]}")
        return what

    def result(self):
        value = self.receive()[1]
        self.wait()
        return value

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        return self.wait()

    def wait(self):
        """The signal that ended it, or 0."""
        self.pipe.close()
        return os.WTERMSIG(os.waitpid(self.pid, 0)[1])


def in_child(run, *args):
    """What run(*args) returns in another process."""
    return Child(lambda child: run(*args)).result()
