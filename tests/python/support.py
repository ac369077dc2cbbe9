# SPDX-License-Identifier: MIT
"""A gmsd of the test's own, second processes, and model files."""
import contextlib
import json
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
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = (ROOT / os.environ.get("BUILD", "build")).resolve()
os.environ.setdefault("GMS_LIBRARY", str(BUILD / "libgmsclient.so"))

import gms  # noqa: E402

try:
    import torch
    torch.set_num_threads(1)  # a child of fork() has no other threads
except ImportError:
    torch = None

needs_torch = unittest.skipIf(torch is None, "no torch")


class Daemon:
    """gmsd on a socket of its own. `environment` and `device` make it one with the fake driver."""

    def __init__(self, device="host:1G", environment=None):
        self.dir = tempfile.mkdtemp(prefix="gms-python.")
        self.socket = os.path.join(self.dir, "sock")
        with open(os.path.join(self.dir, "log"), "wb") as log:
            self.process = subprocess.Popen([BUILD / "gmsd", "--socket", self.socket, "--device", device], stderr=log,
                                            env={**os.environ, **(environment or {})})
        for _ in range(500):
            if os.path.exists(self.socket):
                return
            time.sleep(0.01)
        self.stop()
        raise RuntimeError("gmsd did not start")

    def stop(self):
        self.process.terminate()
        self.process.wait(10)
        shutil.rmtree(self.dir)


class Case(unittest.TestCase):
    """Tests with a daemon: one a class, and a store of its own for each test."""

    @classmethod
    def setUpClass(cls):
        cls.daemon = Daemon()
        cls.addClassCleanup(cls.daemon.stop)
        os.environ["GMS_SOCKET"] = cls.daemon.socket

    def setUp(self):
        self.store = f"host/{self._testMethodName}"

    def assert_errno(self, number, words, call, *args, **options):
        """It fails so, and the text has the words."""
        with self.assertRaises(gms.Error) as caught:
            call(*args, **options)
        self.assertEqual(caught.exception.errno, number, str(caught.exception))
        for word in [words] if isinstance(words, str) else words:
            self.assertIn(word, str(caught.exception))


class Child:
    """A process that runs a function: `run` gets self.send, and what it returns is result()'s."""

    def __init__(self, run):
        self.read, write = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                os.close(self.read)
                signal.alarm(60)
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
        return pickle.load(self.pipe)

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        return self.wait()

    def wait(self):
        """The signal that ended it, or 0."""
        self.pipe.close()
        return os.WTERMSIG(os.waitpid(self.pid, 0)[1])

    def result(self):
        kind, value = self.receive()
        self.wait()
        if kind == "raised":
            raise AssertionError(f"in the child: {value}")
        return value


def in_child(run, *args):
    """What run(*args) returns in another process."""
    return Child(lambda child: run(*args)).result()


def write_safetensors(path, tensors):
    """`tensors`: name -> (dtype, shape, bytes)."""
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in tensors.values()))
