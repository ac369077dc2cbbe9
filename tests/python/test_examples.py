# SPDX-License-Identifier: MIT
"""The examples, as their comments say to run them."""
import os
import subprocess
import sys

from support import ROOT, Case, needs_torch

PYTHON = ROOT / "libgmsclient/python"


@needs_torch
class Examples(Case):
    def run_example(self, name):
        r = subprocess.run([sys.executable, PYTHON / "examples" / name, self.store], capture_output=True, text=True, timeout=120,
                           env={**os.environ, "PYTHONPATH": str(PYTHON)})
        self.assertEqual(r.returncode, 0, r.stderr)
        return r.stdout.splitlines()

    def test_producer_and_consumer(self):
        produced = self.run_example("producer.py")
        consumed = self.run_example("consumer.py")
        self.assertTrue(produced[0].startswith(f"{self.store}: generation 1, "), produced)
        self.assertEqual(consumed[1], produced[1])
        self.assertEqual(consumed[2], f"awake again, contents as before: {produced[1]}")
