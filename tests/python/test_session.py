# SPDX-License-Identifier: MIT
"""Sessions without torch: attach, errors, events, sleep, fork; and model files."""
import ctypes
import errno
import os
import signal
import tempfile
import threading
import time
import unittest
import unittest.mock

from support import BUILD, ROOT, Case, Child, Daemon, in_child, gms, write_safetensors

from gms._library import lib


def bytes_at(info):
    return ctypes.string_at(info.address, info.bytes)


class Model(Case):
    """Each test has a model file with a few tensors, and publishes it."""

    def setUp(self):
        super().setUp()
        self.dir = tempfile.TemporaryDirectory()
        self.addCleanup(self.dir.cleanup)
        self.file = os.path.join(self.dir.name, "model.safetensors")
        self.content = {"a.weight": ("F32", [4, 6], bytes(range(96))), "a.bias": ("BF16", [3], b"123456"),
                        "b.empty": ("I64", [0, 5], b""), "b.scalar": ("F64", [], b"12345678")}
        write_safetensors(self.file, self.content)

    def load(self, content=None, identity=None, mode="rw"):
        if content is not None:
            write_safetensors(self.file, content)
        return gms.load(self.store, self.file, identity=identity, mode=mode, threads=2)


class Attach(Model):
    def test_manifest(self):
        self.load()
        with gms.attach(self.store) as session:
            found = {i.name: i for i in session.manifest()}
            self.assertEqual(sorted(self.content), list(found))
            for name, (dtype, shape, data) in self.content.items():
                self.assertEqual((found[name].dtype, list(found[name].shape), bytes_at(found[name])), (dtype, shape, data))
            self.assertEqual(found["a.weight"].strides, (6, 1))
            self.assertEqual([i.name for i in session.manifest("b.")], ["b.empty", "b.scalar"])
        self.assertEqual([(i.name, i.address) for i in gms.manifest(self.store)], [(name, 0) for name in found])

    def test_state(self):
        digest = self.load()
        self.assertTrue(digest.startswith("xxh3-128:"), digest)
        with gms.attach(self.store) as session:
            state = session.state()
            self.assertEqual((state.mode, state.identity, state.device, state.store_state, state.mapped, state.sealed),
                             ("ro", digest, "host", "RO", True, False))
            self.assertEqual((session.identity, session.generation, session.hash), (digest, 1, state.hash))
            self.assertEqual(len(state.hash), 32)
            self.assertGreaterEqual(state.bytes, 96 + 6 + 8)

    def test_identity_is_demanded(self):
        self.load(identity="one@1")
        gms.attach(self.store, identity="one@1").close()
        self.assert_errno(errno.EKEYREJECTED, ["one@1", "two@2"], gms.attach, self.store, identity="two@2")

    def test_now_or_never(self):
        self.assert_errno(errno.EBUSY, self.store, gms.attach, self.store, deadline=0)
        begin = time.monotonic()
        self.assert_errno(errno.ETIMEDOUT, self.store, gms.attach, self.store, deadline=0.2)
        self.assertLess(0.19, time.monotonic() - begin)

    def test_no_daemon(self):
        self.assert_errno(errno.ENOENT, "/nowhere/sock", gms.attach, self.store, socket="/nowhere/sock")

    def test_no_device(self):
        self.assert_errno(errno.ENODEV, "cuda:7", gms.attach, "cuda:7/weights", deadline=0)

    def test_arguments(self):
        with self.assertRaisesRegex(ValueError, "no such mode to attach in: 'rw'"):
            gms.attach(self.store, mode="rw")
        self.assert_errno(errno.EINVAL, "", gms.attach, "no store")
        for options in [{"identity": "id\0other"}, {"label": "a\0b"}, {"socket": "a\0b"}]:
            with self.assertRaisesRegex(ValueError, "NUL"):
                gms.attach(self.store, deadline=0, **options)
        with self.assertRaisesRegex(ValueError, "NUL"):
            gms.attach(self.store + "\0c", deadline=0)
        with self.assertRaisesRegex(ValueError, "NUL"):
            gms.load(self.store, self.file + "\0c")
        self.load()
        for deadline in (float("inf"), 1e300, -1):
            gms.attach(self.store, deadline=deadline).close()

    def test_closed(self):
        self.load()
        session = gms.attach(self.store)
        session.close()
        session.close()
        self.assert_errno(errno.EBADF, [self.store, "closed"], session.state)

    def test_a_lost_session_gives_the_lock_back(self):
        self.load()
        gms.attach(self.store)
        self.load()
        self.assertEqual(gms.attach(self.store, deadline=0).generation, 2)

    def test_fixed_address(self):
        self.load()

        def where():
            with gms.attach(self.store, address=0x5000_0000_0000) as session:
                return [i.address for i in session.manifest()]
        here = where()
        self.assertEqual(here, in_child(where))
        self.assertTrue(0x5000_0000_0000 <= here[0] < 0x5000_0100_0000)
        with gms.attach(self.store, address=0x5000_0000_0000):
            self.assert_errno(errno.EEXIST, "", gms.attach, self.store, address=0x5000_0000_0000)

    def test_killed_reader_leaves(self):
        self.load()

        def read(child):
            session = gms.attach(self.store)
            child.send(bytes_at(session.manifest("a.w")[0]))
            signal.pause()
        child = Child(read)
        self.assertEqual(child.receive(), self.content["a.weight"][2])
        self.assert_errno(errno.EBUSY, "", gms.pool, self.store, deadline=0)
        self.assertEqual(child.kill(), signal.SIGKILL)
        with self.assertRaises(KeyError), gms.pool(self.store, deadline=5):
            raise KeyError
        self.assertEqual(gms.attach(self.store, deadline=5).generation, 1)

    def test_fork(self):
        self.load()
        session = gms.attach(self.store)
        where = session.manifest("a.w")[0]

        def use():
            self.assertEqual(bytes_at(where), self.content["a.weight"][2])
            with self.assertRaises(gms.Error) as caught:
                session.state()
            session.close()
            return caught.exception.errno
        self.assertEqual(in_child(use), errno.ECHILD)
        self.assertEqual(session.state().mode, "ro")
        self.assertEqual(bytes_at(where), self.content["a.weight"][2])

    def test_interrupted(self):
        """A handler that raises ends the waiting; one that does not lets it go on."""
        def wait(child):
            signal.signal(signal.SIGUSR1, lambda *_: child.send("signal"))
            signal.signal(signal.SIGINT, signal.default_int_handler)
            child.send("waits")
            try:
                gms.attach(self.store)
            except KeyboardInterrupt:
                return "interrupted"
        child = Child(wait)
        self.assertEqual(child.receive(), "waits")
        time.sleep(0.1)
        os.kill(child.pid, signal.SIGUSR1)
        self.assertEqual(child.receive(), "signal")
        time.sleep(0.1)
        os.kill(child.pid, signal.SIGINT)
        self.assertEqual(child.result(), "interrupted")


class Sleep(Model):
    def test_wake(self):
        self.load()
        session = gms.attach(self.store)
        before = session.manifest()
        session.sleep()
        self.assertFalse(session.state().mapped)
        self.assertEqual([i.address for i in session.manifest()], [0] * len(before))
        self.assertFalse(session.wake())
        self.assertEqual(session.manifest(), before)
        self.assertEqual(bytes_at(before[1]), self.content["a.weight"][2])

    def test_refresh(self):
        self.load()
        session = gms.attach(self.store)
        before = session.manifest()
        self.assertFalse(session.refresh())
        self.content["a.weight"] = ("F32", [4, 6], bytes(reversed(range(96))))
        self.update(self.content)
        self.assertEqual(bytes_at(before[1]), bytes(range(96)))
        self.assertTrue(session.refresh())
        self.assertEqual(session.manifest(), before)
        self.assertEqual(bytes_at(before[1]), bytes(reversed(range(96))))
        self.assertEqual(session.generation, 2)

    def test_refresh_asleep(self):
        self.load()
        session = gms.attach(self.store)
        where = session.manifest("a.w")[0]
        session.sleep()
        self.content["a.weight"] = ("F32", [4, 6], bytes(96))
        self.update(self.content)
        session.refresh()
        self.assertTrue(session.wake())
        self.assertEqual(bytes_at(where), bytes(96))

    def test_another_structure(self):
        self.load()
        session = gms.attach(self.store)
        where = session.manifest("a.w")[0]
        self.update({"other": ("U8", [10000], bytes(10000))})
        self.assert_errno(errno.ESTALE, "", session.refresh)
        self.assertEqual(bytes_at(where), self.content["a.weight"][2])

    def update(self, content):
        write_safetensors(self.file, content)
        gms.load(self.store, self.file, mode="update")


class Watch(Model):
    def test_publication(self):
        self.load()
        session = gms.attach(self.store)
        self.assertEqual(list(session.watch(0)), [])
        writer = threading.Timer(0.1, gms.load, (self.store, self.file), {"mode": "update"})
        writer.start()
        event = next(session.watch(10))
        writer.join()
        self.assertEqual((event.kind, event.generation), ("published", 2))
        begin = time.monotonic()
        self.assertEqual([e.kind for e in session.watch(0.1)], [])
        self.assertLess(0.1, time.monotonic() - begin)
        session.refresh()
        self.assertEqual(session.generation, 2)

    def test_lock_wanted(self):
        self.load()
        session = gms.attach(self.store)
        writer = threading.Thread(target=self.load)
        writer.start()
        self.assertEqual(next(session.watch(10)).kind, "lock_wanted")
        session.close()
        writer.join()


    def watching(self, session, timeout=None):
        """A thread that watches, and what it got."""
        events = []
        thread = threading.Thread(target=lambda: events.extend(session.watch(timeout)), daemon=True)
        thread.start()
        time.sleep(0.1)
        self.assertTrue(thread.is_alive())
        return thread, events

    def assert_ends(self, *threads):
        for thread in threads:
            thread.join(5)
            self.assertFalse(thread.is_alive())

    def test_close_ends_it(self):
        self.load()
        before = len(os.listdir("/proc/self/fd"))
        session = gms.attach(self.store)
        (one, events), (two, _) = self.watching(session), self.watching(session, 1e300)
        in_child(session.close)  # a copy of it: nothing to those here
        one.join(0.1)
        self.assertTrue(one.is_alive())
        session.close()
        self.assert_ends(one, two)
        self.assertEqual(events, [])
        self.assert_errno(errno.EBADF, "closed", lambda: next(session.watch()))
        gms.pool(self.store, deadline=0).close()
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)

    def test_close_inside_ends_it(self):
        self.load()
        session = gms.attach(self.store)
        in_child(self.load, None, None, "update")
        for event in session.watch():
            session.close()
        self.assertEqual(event.kind, "published")

    def test_the_daemon_s_end_ends_it(self):
        other = Daemon()
        self.addCleanup(other.stop)
        gms.load(self.store, self.file, socket=other.socket)
        session = gms.attach(self.store, socket=other.socket)
        thread, events = self.watching(session)
        other.process.kill()
        self.assert_ends(thread)
        self.assertEqual([e.kind for e in events], ["closed"])
        self.assertEqual(list(session.watch()), [])

    def test_close_waits_for_who_is_inside(self):
        """The struct is freed by the last one, who has it all the time."""
        self.load()
        session = gms.attach(self.store)
        inside, go = threading.Event(), threading.Event()

        def slow(*arguments):
            inside.set()
            go.wait(10)
            return real(*arguments)
        real, results = lib.gms_state, []
        with unittest.mock.patch.object(lib, "gms_state", slow):
            thread = threading.Thread(target=lambda: results.append(session.state()), daemon=True)
            thread.start()
            inside.wait(10)
            session.close()
            self.assert_errno(errno.EBUSY, "", gms.pool, self.store, deadline=0)
            go.set()
            thread.join()
        self.assertEqual(results[0].mode, "ro")
        gms.pool(self.store, deadline=0).close()

    def test_closed_under_calls(self):
        self.load()

        def ask(session):
            with self.assertRaises(gms.Error) as caught:
                while True:
                    session.manifest()
            errors.append(caught.exception.errno)
        errors = []
        for _ in range(30):
            session = gms.attach(self.store)
            threads = [threading.Thread(target=ask, args=(session,)) for _ in range(3)]
            for thread in threads:
                thread.start()
            time.sleep(0.002)
            session.close()
            for thread in threads:
                thread.join()
        self.assertEqual(errors, [errno.EBADF] * 90)


class Load(Model):
    def test_verify(self):
        digest = self.load()
        self.assertEqual(gms.verify(self.store, self.file, threads=2), digest)
        self.content["a.weight"] = ("F32", [4, 6], bytes(range(95)) + b"\xff")
        write_safetensors(self.file, self.content)
        self.assert_errno(errno.EILSEQ, "a.weight", gms.verify, self.store, self.file)
        del self.content["b.scalar"]
        write_safetensors(self.file, self.content)
        self.assert_errno(errno.EBADMSG, "b.scalar", gms.verify, self.store, self.file)

    def test_directory_and_progress(self):
        os.rename(self.file, os.path.join(self.dir.name, "one.safetensors"))
        write_safetensors(os.path.join(self.dir.name, "two.safetensors"), {"c": ("U8", [1 << 20], bytes(1 << 20))})
        seen = []
        gms.load(self.store, self.dir.name, identity="both", progress=seen.append)
        self.assertEqual((seen[-1].files, seen[-1].tensors, seen[-1].done), (2, 5, seen[-1].total))
        self.assertEqual(seen[-1].total, 96 + 6 + 8 + (1 << 20))
        self.assertEqual(gms.attach(self.store).identity, "both")

    def test_bad_file_leaves_what_was(self):
        self.load(identity="good")
        with open(self.file, "r+b") as f:
            f.truncate(120)
        self.assert_errno(errno.EBADMSG, "model.safetensors", gms.load, self.store, self.file)
        self.assertEqual(gms.attach(self.store).identity, "good")

    def test_interrupted_leaves_what_was(self):
        self.load(identity="good")

        def stop(progress):
            raise KeyboardInterrupt
        with unittest.mock.patch.object(lib, "gms_checkpoint_cancel", wraps=lib.gms_checkpoint_cancel) as cancel:
            self.assertRaises(KeyboardInterrupt, gms.load, self.store, self.file, progress=stop)
            cancel.assert_called_once()
        self.assertEqual(gms.attach(self.store, deadline=0).identity, "good")

    def test_no_interrupt_frees_what_threads_work_on(self):
        """Neither the first Ctrl-C, nor those that come while threads are waited for."""
        def load():
            signal.signal(signal.SIGINT, signal.default_int_handler)
            work, close, order = lib.gms_checkpoint_work, lib.gms_checkpoint_close, []

            def slow(checkpoint):
                order.append("begins")
                time.sleep(0.6)
                order.append("ends")
                return work(checkpoint)

            def recorded(checkpoint):
                order.append("closed")
                close(checkpoint)
            for after in 0.2, 0.3, 0.4:
                threading.Timer(after, os.kill, (os.getpid(), signal.SIGINT)).start()
            with unittest.mock.patch.object(lib, "gms_checkpoint_work", slow), \
                    unittest.mock.patch.object(lib, "gms_checkpoint_close", recorded):
                try:
                    gms.load(self.store, self.file, threads=2)
                except KeyboardInterrupt:
                    order.append("interrupted")
            return order
        self.assertEqual(in_child(load), ["begins", "begins", "ends", "ends", "closed", "interrupted"])

    def test_no_such_file(self):
        self.assert_errno(errno.ENOENT, "/nowhere/x", gms.load, self.store, "/nowhere/x")


class Process(unittest.TestCase):
    def test_a_daemon_ends_with_its_test(self):
        """And holds nobody's pipe open."""
        import shutil
        import subprocess
        import sys
        code = "import os, process; d = process.Daemon(); print(d.process.pid, d.dir, flush=True); os.kill(os.getpid(), 11)"
        r = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "tests/python", stdout=subprocess.PIPE, text=True, timeout=30,
                           env={**os.environ, "BUILD": str(BUILD)})
        pid, where = r.stdout.split()
        self.addCleanup(shutil.rmtree, where)
        for _ in range(500):
            try:
                with open(f"/proc/{pid}/stat") as f:
                    if f.read().rpartition(")")[2].split()[0] == "Z":  # nobody has asked for its status
                        return
            except (FileNotFoundError, ProcessLookupError):
                return
            time.sleep(0.01)
        self.fail(f"gmsd {pid} is still there")


class Package(unittest.TestCase):
    def test_versions_agree(self):
        with open(ROOT / "libgmsclient/python/pyproject.toml") as f:
            self.assertIn(f'version = "{gms.__version__}"', f.read())

    def test_no_torch_is_imported(self):
        import subprocess
        import sys
        code = "import gms, sys; sys.exit('torch' in sys.modules)"
        self.assertEqual(subprocess.call([sys.executable, "-c", code], cwd=ROOT / "libgmsclient/python",
                                         env={**os.environ, "GMS_LIBRARY": str(BUILD / "libgmsclient.so")}), 0)

    def test_no_library(self):
        import subprocess
        import sys
        r = subprocess.run([sys.executable, "-c", "import gms"], cwd=ROOT / "libgmsclient/python", capture_output=True, text=True,
                           env={**os.environ, "GMS_LIBRARY": "/nowhere/lib.so"})
        self.assertIn("ImportError: gms needs libgmsclient of version 1: /nowhere/lib.so", r.stderr)

    def test_every_symbol_is_declared_as_in_the_header(self):
        """The structs' sizes, by a C compiler."""
        import shutil
        import subprocess
        from gms import _library
        cc = shutil.which(os.environ.get("CC", "cc"))
        if cc is None:
            self.skipTest("no C compiler")
        names = {"connect_options": _library.ConnectOptions, "allocation": _library.Allocation, "state": _library.State,
                 "event": _library.Event, "tensor": _library.Tensor, "tensor_list": _library.TensorList,
                 "pool_options": _library.PoolOptions, "piece": _library.Piece, "pool_stats": _library.PoolStats,
                 "checkpoint_progress": _library.Progress}
        checks = "".join(f'_Static_assert(sizeof(struct gms_{n}) == {ctypes.sizeof(s)}, "");\n' +
                         "".join(f'_Static_assert(offsetof(struct gms_{n}, {f}) == {getattr(s, f).offset}, "{f}");\n'
                                 for f, _ in s._fields_) for n, s in names.items())
        subprocess.run([cc, "-fsyntax-only", "-x", "c", "-I", ROOT / "libgmsclient", "-"], check=True, text=True,
                       input="#include <stddef.h>\n#include <gmsclient.h>\n" + checks)


if __name__ == "__main__":
    unittest.main()
