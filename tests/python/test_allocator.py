# SPDX-License-Identifier: MIT
"""
The allocator pair that torch is given, called as torch calls it, on a GPU of the fake driver: torch.cuda itself needs a
real one (tests/gpu/torch_pool.py).
"""
import os
import subprocess
import sys
import tempfile
import unittest

from support import BUILD, ROOT, Daemon

PROGRAM = r"""
import ctypes, sys
import gms
from gms._library import lib, check, Error
pool = gms.pool("cuda:0/weights")
raw = pool._open()
assert not lib.gms_torch_alloc(2 << 20, 0, None)             # no pool is in use
check(lib.gms_torch_use(raw))
a, b, c = (lib.gms_torch_alloc(n << 20, 0, None) for n in (2, 20, 2))
assert a and b and c and len({a, b, c}) == 3
assert pool.stats().pieces == 3 and pool.stats().requested == 24 << 20, pool.stats()
assert not lib.gms_torch_alloc(2 << 20, 1, None)             # another GPU
assert not lib.gms_torch_alloc(1 << 50, 0, None)             # torch makes its out-of-memory error of that
try:
    check(-12)
except Error as e:
    assert str(e), "no text"
ctypes.memset(b, 7, 20 << 20)                                # the fake's device memory is the process's
lib.gms_torch_free(a, 2 << 20, 0, None)
check(lib.gms_torch_clear(raw))
assert not lib.gms_torch_alloc(2 << 20, 0, None)
lib.gms_torch_free(c, 2 << 20, 0, None)
check(lib.gms_pool_trim(raw))
assert pool.stats().pieces == 1, pool.stats()
check(lib.gms_commit(pool._handle.g, b"by hand", 0))
pool._finish()                                               # forgets the pool, not what is allocated
assert ctypes.string_at(b, 3) == b"\7\7\7"
lib.gms_torch_free(b, 20 << 20, 0, None)
with gms.attach("cuda:0/weights", deadline=5) as session:
    assert session.identity == "by hand"
print("ok")
"""


class Allocator(unittest.TestCase):
    def test_as_torch_calls_it(self):
        with tempfile.TemporaryDirectory(dir="/dev/shm") as dir:
            fake = {"LD_LIBRARY_PATH": str(BUILD / "tests/fakecuda"), "FAKECUDA_DIR": dir}
            daemon = Daemon("cuda", fake)
            try:
                r = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, env={
                    **os.environ, **fake, "GMS_SOCKET": daemon.socket, "PYTHONPATH": str(ROOT / "libgmsclient/python")})
            finally:
                daemon.stop()
        self.assertEqual((r.stdout, r.stderr), ("ok\n", ""))


if __name__ == "__main__":
    unittest.main()
