# SPDX-License-Identifier: MIT
"""
What the scripts torch_*.py here share: gmsd on cuda:0, a table, and the GPU's memory as the driver counts it.

They run on a machine with a GPU, in the folder that `make gpu-bundle` made or in the tree, and exit non-zero when something
is not as it should be. Every process that touches the GPU is a child, forked with torch imported and CUDA untouched:
their times are those of a process from "imports done" on.
"""
import atexit
import json
import os
import signal
import subprocess
import sys
import time

os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # whoever asks whether there is a GPU before the forks leaves CUDA untouched
here = os.path.dirname(os.path.abspath(__file__))
for folder in ("python", "../python", "../../libgmsclient/python"):  # the bundle's, and the tree's
    if os.path.isdir(os.path.join(here, folder)):
        sys.path.insert(0, os.path.join(here, folder))

from process import GMSCTL, Child, Daemon, in_child  # noqa: E402, F401

failures = []


def row(name, value):
    print(f"  {name:<56} {value}", flush=True)


def expect(holds, name, value=""):
    """A row, and a failure unless it holds."""
    row(name, f"{value}  {'ok' if holds else 'FAILED'}".strip())
    if not holds:
        failures.append(name)


def finish():
    print(f"{os.path.basename(sys.argv[0])}: {'FAILED: ' + '; '.join(failures) if failures else 'passed'}")
    sys.exit(1 if failures else 0)


def used():
    """MiB of GPU 0 in use, by everybody."""
    return int(subprocess.check_output(["nvidia-smi", "-i", "0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]))


def settled(expected, slack, limit=10):
    """Waits until about that much is in use, and says how much is: the driver takes its time over a death."""
    until = time.monotonic() + limit
    while abs(used() - expected) > slack and time.monotonic() < until:
        time.sleep(0.2)
    return used()


def gmsctl(*arguments):
    """What it printed, and how long it took; raises if it failed."""
    begin = time.monotonic()
    r = subprocess.run([GMSCTL, *arguments], capture_output=True, text=True, timeout=180)
    if r.returncode:
        raise RuntimeError(f"gmsctl {' '.join(arguments)}: {r.stderr}")
    return r.stdout.strip(), time.monotonic() - begin


def owned():
    """Bytes that gmsd holds on cuda:0."""
    return next(d["owned"] for d in json.loads(gmsctl("status", "--json")[0])["devices"] if d["name"] == "cuda:0")


def start():
    daemon = Daemon("cuda:0")
    atexit.register(daemon.stop)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    os.environ["GMS_SOCKET"] = daemon.socket


def ms(seconds):
    return f"{seconds * 1e3:.1f} ms"
