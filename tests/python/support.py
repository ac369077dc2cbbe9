# SPDX-License-Identifier: MIT
"""What the tests share: a case with a daemon, torch where it is, and model files."""
import json
import os
import pathlib
import unittest

from process import BUILD, Child, Daemon, in_child  # noqa: F401

ROOT = pathlib.Path(__file__).resolve().parents[2]
os.environ.setdefault("GMS_LIBRARY", str(BUILD / "libgmsclient.so"))

import gms  # noqa: E402

try:
    import torch
    torch.set_num_threads(1)  # a child of fork() has no other threads
except ImportError:
    torch = None

needs_torch = unittest.skipIf(torch is None, "no torch")


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
