# SPDX-License-Identifier: MIT
"""Tensors and modules: what one process publishes, another has, bit for bit."""
import errno
import gc
import signal
import sys
import tempfile
import threading
import time
import unittest.mock
import weakref
from ctypes import byref

from support import Case, Child, Daemon, gms, in_child, needs_torch, torch, write_safetensors

from gms._library import Piece, check, lib

if torch is not None:
    from gms.tensors import raw
    from torch import nn

    class Rotary(nn.Module):
        """What a module computes at construction, and no checkpoint has."""

        def __init__(self):
            super().__init__()
            self.register_buffer("frequencies", 1.0 / torch.arange(1, 5), persistent=False)

    class Small(nn.Module):
        """Tied weights, buffers that share a storage, a buffer that is not persistent."""

        def __init__(self, seed=0):
            super().__init__()
            torch.manual_seed(seed)
            self.embed = nn.Embedding(16, 8)
            self.norm = nn.BatchNorm1d(8)
            self.rotary = Rotary()
            table = torch.arange(12.0)
            self.register_buffer("low", table[:6])
            self.register_buffer("high", table[4:].view(2, 4))
            self.head = nn.Linear(8, 16, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids):
            x = self.norm(self.embed(ids).flatten(0, 1)) * self.rotary.frequencies.repeat(2) + self.high.sum()
            return self.head(x)

    IDS = torch.arange(12).view(3, 4) if torch is not None else None


def same(a, b):
    """Bit for bit, with type, shape and strides."""
    flat = [t.contiguous().view(-1).view(torch.uint8) if t.dim() else t.clone().view(1).view(torch.uint8) for t in (a, b)]
    return (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride()) and torch.equal(*flat)


@needs_torch
class Tensors(Case):
    def test_every_type(self):
        floats = torch.randn(6, 4)
        names = ["float64", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float8_e4m3fnuz",
                 "float8_e5m2fnuz"]
        there = {"float32": floats, "bool": floats > 0, "complex64": torch.complex(floats, -floats)}
        there.update({n: floats.to(getattr(torch, n)) for n in names if hasattr(torch, n)})
        there.update({n: torch.arange(100, 112).view(3, 4).to(getattr(torch, n)) for n in
                      ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]})
        there["scalar"] = torch.tensor(42.0)
        there["empty"] = torch.empty(3, 0, 2)
        if hasattr(torch, "float4_e2m1fn_x2"):
            there["float4"] = torch.arange(12, dtype=torch.uint8).view(3, 4).view(torch.float4_e2m1fn_x2)
        gms.publish(there, self.store).close()

        def look():
            here = gms.attach(self.store).tensors()
            self.assertEqual(sorted(here), sorted(there))
            self.assertEqual([n for n, t in here.items() if not same(t, there[n])], [])
            self.assertEqual({i.name: i.dtype for i in gms.manifest(self.store)}["float8_e4m3fn"], "F8_E4M3")
        in_child(look)

    def test_types_that_are_not(self):
        for name, tensor, words in [("c128", torch.zeros(2, dtype=torch.complex128), "complex128, for which safetensors"),
                                    ("meta", torch.zeros(2, device="meta"), "no memory to publish"),
                                    ("sparse", torch.eye(3).to_sparse(), "sparse"), ("text", "a text", "no tensor: it is a str")]:
            with self.assertRaisesRegex(TypeError, f"^{name} .*{words}"):
                gms.publish({name: tensor}, self.store)
        self.assert_errno(errno.EBUSY, "", gms.attach, self.store, deadline=0)

    def test_names_that_are_not(self):
        with self.assertRaisesRegex(ValueError, "NUL"):
            gms.publish({"a\0x": torch.zeros(2), "a\0y": torch.zeros(2)}, self.store)
        with self.assertRaisesRegex(ValueError, "NUL"):
            gms.publish({"a": torch.zeros(2)}, self.store, "id\0x")
        self.assert_errno(errno.EBUSY, "", gms.attach, self.store, deadline=0)

    def test_type_that_torch_has_not(self):
        with tempfile.NamedTemporaryFile(suffix=".safetensors") as f:
            write_safetensors(f.name, {"six": ("F6_E2M3", [4], b"abc"), "other": ("U8", [3], b"abc")})
            gms.load(self.store, f.name)
        session = gms.attach(self.store)
        self.assert_errno(errno.EOPNOTSUPP, ["six is [4] of F6_E2M3", torch.__version__], session.tensors)
        self.assertEqual(session.tensors("oth")["other"].tolist(), [97, 98, 99])

    def test_views(self):
        base = torch.arange(24.0).view(4, 6)
        there = {"base": base, "transposed": base.t(), "every_other": base[::2, 1::2], "expanded": base[0].expand(3, 6),
                 "alone": torch.randn(5, 5)[1:3].t(), "conj": torch.view_as_complex(base.view(4, 3, 2)).conj()}
        gms.publish(there, self.store).close()
        session = gms.attach(self.store)
        here = session.tensors()
        self.assertEqual([n for n in there if n != "conj" and not same(here[n], there[n])], [])
        self.assertTrue(torch.equal(here["conj"], there["conj"].resolve_conj()))
        self.assertEqual(here["every_other"].data_ptr() - here["base"].data_ptr(), 4)
        self.assertEqual(here["expanded"].data_ptr(), here["base"].data_ptr())
        infos = {i.name: i for i in session.manifest()}
        self.assertEqual(infos["base"].storage, infos["every_other"].storage)
        self.assertLess(infos["alone"].storage[1], 100)  # what is not named is not copied

    def test_empty_views(self):
        """They need no memory, and have no place beside what does."""
        x = torch.arange(1000.0)
        there = {"x": x, "first": x[:0], "last": x[1000:].view(0, 3), "none": torch.empty(2, 0)}
        gms.publish(there, self.store).close()
        here = gms.attach(self.store).tensors()
        self.assertEqual([n for n, t in there.items() if not same(here[n], t)], [])

    def test_tied(self):
        weight = torch.randn(3, 3)
        gms.publish({"a": weight, "b": weight, "c": weight.clone(), "d": weight.t()}, self.store).close()
        here = gms.attach(self.store).tensors()
        self.assertIs(here["a"], here["b"])
        self.assertIsNot(here["a"], here["c"])
        self.assertTrue(torch.equal(here["d"], weight.t()))
        self.assertEqual(here["d"].data_ptr(), here["a"].data_ptr())
        self.assertNotEqual(here["c"].data_ptr(), here["a"].data_ptr())

    def test_outlive_the_session(self):
        gms.publish({"x": torch.arange(1000)}, self.store).close()
        with gms.attach(self.store) as session:
            x = session.tensors()["x"]
        tail = x[500:]
        del x
        gc.collect()
        self.assertEqual(tail.sum().item(), sum(range(500, 1000)))
        self.assert_errno(errno.EBUSY, "", gms.pool, self.store, deadline=0)  # it reads still
        del tail
        gms.pool(self.store, deadline=0).close()

    def test_a_capsule_that_nobody_takes(self):
        """It keeps nothing."""
        gms.publish({"x": torch.arange(10)}, self.store).close()
        session = gms.attach(self.store)
        with unittest.mock.patch("torch.utils.dlpack.from_dlpack", side_effect=BufferError("no")):
            self.assertRaises(BufferError, session.tensors)
        session.close()
        gms.pool(self.store, deadline=0).close()

    def test_write_is_a_segfault(self):
        gms.publish({"x": torch.zeros(10)}, self.store).close()

        def write(child):
            gms.attach(self.store).tensors()["x"].fill_(1)
        self.assertEqual(Child(write).wait(), signal.SIGSEGV)
        self.assertEqual(gms.attach(self.store).tensors()["x"].sum().item(), 0)

    def test_sleep_and_wake(self):
        gms.publish({"x": torch.arange(100)}, self.store).close()
        session = gms.attach(self.store)
        x = session.tensors()["x"]
        at = x.data_ptr()
        session.sleep()
        self.assert_errno(errno.EACCES, "", session.tensors)
        session.wake()
        self.assertEqual((x.data_ptr(), x.sum().item(), session.tensors()["x"].data_ptr()), (at, 4950, at))

    def test_refresh_shows_new_bytes(self):
        gms.publish({"x": torch.zeros(100)}, self.store).close()
        session = gms.attach(self.store)
        x = session.tensors()["x"]

        def update():
            gms.publish({"x": torch.ones(100)}, self.store, mode="update").close()
        in_child(update)
        self.assertEqual(x.sum().item(), 0)
        self.assertEqual([e.kind for e in session.watch(0)], ["published"])
        self.assertTrue(session.refresh())
        self.assertEqual(x.sum().item(), 100)

    def test_three_thousand(self):
        one = torch.zeros(64)
        gms.publish({f"layers.{i}.weight": one + i for i in range(3000)}, self.store).close()

        def look():
            times = []
            for _ in range(5):
                begin = time.perf_counter()
                session = gms.attach(self.store)
                attached = time.perf_counter()
                tensors = session.tensors()
                times.append((time.perf_counter() - attached, attached - begin))
                self.assertEqual(tensors["layers.2999.weight"][0].item(), 2999)
                del tensors
                session.close()
            return times
        times = in_child(look)
        print(f"\n3,000 tensors: {times[0][0] * 1e3:.1f} ms the first time, {min(times)[0] * 1e3:.1f} ms at best, over the "
              f"attach of {times[0][1] * 1e3:.1f} ms")
        self.assertLess(min(times)[0], 0.1)


@needs_torch
class Publish(Case):
    def test_module(self):
        module = Small()
        module.train()(IDS)
        session = gms.publish(module, self.store, "small@1")
        self.assertEqual((session.state().mode, session.identity), ("ro", "small@1"))
        kinds = {i.name: i.kind for i in session.manifest()}
        self.assertEqual(kinds["embed.weight"], "parameter")
        self.assertEqual(kinds["rotary.frequencies"], "buffer")
        named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers()]
        self.assertEqual(set(kinds), {n for n, _ in named})
        tensors = session.tensors()
        self.assertIs(tensors["embed.weight"], tensors["head.weight"])
        self.assertEqual([n for n, t in module.state_dict().items() if not same(t, tensors[n])], [])
        module.train()(IDS).sum().backward()  # it was copied, so it is as it was

    def test_failure_leaves_what_was(self):
        gms.publish({"x": torch.zeros(1)}, self.store, "old").close()
        with self.assertRaises(ZeroDivisionError):
            with gms.pool(self.store):
                1 / 0
        self.assertEqual(gms.attach(self.store, deadline=0).identity, "old")
        with self.assertRaises(TypeError):
            gms.publish({"x": 1}, self.store)
        self.assertEqual(gms.attach(self.store, deadline=0).identity, "old")

    def test_no_room(self):
        """Nothing is published, and the pool can publish something else."""
        pool = gms.pool(self.store)
        self.assert_errno(errno.ENOMEM, "", pool.publish, {"a": torch.zeros(1 << 20), "b": torch.zeros(1 << 28)})
        self.assertEqual(pool.stats().pieces, 0)
        pool.publish({"x": torch.ones(5)})
        self.assertEqual(gms.attach(self.store).tensors()["x"].sum().item(), 5)

    def test_nothing_is_left_of_a_failure(self):
        """Neither names of what was to be published, nor slabs of its size."""
        pool = gms.pool(self.store)
        self.assert_errno(errno.ENOMEM, "", pool.publish, {"a": torch.zeros(1 << 20), "b": torch.zeros(1 << 28)})
        many = {f"{i:03}" + 200 * "x": torch.zeros(1) for i in range(600)}  # more than a round trip
        self.assert_errno(errno.EINVAL, "identity", pool.publish, many, "bad\nidentity")
        self.assert_errno(errno.EINVAL, "name", pool.publish, {"first": torch.zeros(1), "bad\nname": torch.zeros(1)})
        session = pool.publish({"x": torch.ones(3)}, "good")
        self.assertEqual({n: t.tolist() for n, t in session.tensors().items()}, {"x": [1, 1, 1]})
        self.assertLess(session.state().bytes, 1 << 16)

    def test_a_failure_that_cannot_be_undone_closes(self):
        pool = gms.pool(self.store)
        with unittest.mock.patch.object(lib, "gms_metadata_delete", return_value=-errno.EIO):
            self.assert_errno(errno.EINVAL, "identity", pool.publish, {"x": torch.ones(3)}, "bad\nidentity")
        self.assert_errno(errno.EBADF, "closed", pool.publish, {"x": torch.ones(3)})
        gms.pool(self.store, deadline=0).close()

    def test_a_module_in_place(self):
        """As on a GPU. Parameters stay where they are, buffers become copies, which are made while publishing may still fail."""
        pool = gms.pool(self.store)
        piece = Piece()
        check(lib.gms_pool_allocate(pool._open(), 4096, 0, byref(piece)))
        memory = raw(pool._handle.g, piece.slot, piece.offset, 4096).view(torch.float32)
        memory.copy_(torch.arange(1024.0))
        module = nn.Module()
        module.weight = nn.Parameter(memory[:512])
        module.register_buffer("low", memory[512:700])
        module.register_buffer("high", memory[600:])
        module.register_buffer("empty", memory[1024:])
        with unittest.mock.patch("gms.layout.private_copies", side_effect=MemoryError):
            self.assertRaises(MemoryError, pool.publish, module)
        self.assertTrue(module.weight.requires_grad)
        session = pool.publish(module)
        here = session.tensors()
        self.assertEqual([n for n, t in module.state_dict().items() if not same(t, here[n])], [])
        self.assertEqual(module.weight.data_ptr(), memory.data_ptr())
        self.assertFalse(module.weight.requires_grad)
        module.low[99] = -1
        self.assertEqual((module.high[11].item(), here["high"][11].item()), (-1, 611))

    def test_a_thread_that_ends_lets_go(self):
        def forget():
            pool = gms.pool(self.store)
            pool._open()
        thread = threading.Thread(target=forget)
        thread.start()
        thread.join()
        gms.pool(self.store, deadline=0).close()

    def test_the_last_pool(self):
        with gms.pool(self.store, tag="weights"):
            x = torch.ones(3)
        with gms.pool(self.store + "2"):
            pass
        with gms.pool(self.store + "3", deadline=0) as one, gms.pool(self.store + "4"):
            self.assert_errno(errno.EDEADLK, "inside a pool", gms.pool, self.store + "3")
            self.assertEqual(gms.publish({"x": x})._handle.store, self.store + "4")
        one.close()
        session = gms.publish({"x": x}, self.store)
        self.assertEqual(session._handle.store, self.store)
        self.assertEqual(gms.publish({"y": x})._handle.store, self.store + "2")
        with self.assertRaisesRegex(ValueError, "name a store"):
            gms.publish({"y": x})

    def test_a_forgotten_pool_lets_go(self):
        with gms.pool(self.store):
            pass
        with gms.pool(self.store, deadline=0) as pool:
            self.assert_errno(errno.EDEADLK, "inside a pool", gms.pool, self.store)
            self.assert_errno(errno.EBUSY, "entered already", pool.__enter__)
            with self.assertRaisesRegex(TypeError, "made already.*: deadline, mode"):
                gms.publish({}, self.store, mode="update", deadline=0)
            pool.publish({"x": torch.ones(3)}, "first")
            self.assert_errno(errno.EBADF, "has published", pool.publish, {})
        self.assertEqual(gms.attach(self.store).identity, "first")

    def test_stats(self):
        with gms.pool(self.store) as pool:
            self.assertEqual((pool.stats().pieces, pool.stats().internal_fragmentation), (0, 0.0))
        pool.close()
        self.assert_errno(errno.EBADF, "closed", pool.stats)

    def test_nothing_is_lost_on_padding(self):
        """What is published at once takes slabs that fit."""
        session = gms.publish({str(i): torch.zeros(1 << 18) for i in range(40)}, self.store)
        self.assertLess(session.state().bytes, 40 * (1 << 20) + (1 << 16))
        session.close()
        with gms.pool(self.store) as pool:
            self.assertLess(pool.publish({"x": torch.zeros(5)}).state().bytes, 1 << 16)

    def test_empty(self):
        self.assertEqual(gms.publish({}, self.store).tensors(), {})

    def test_update_beside_readers(self):
        gms.publish({"x": torch.zeros(5)}, self.store).close()
        reader = gms.attach(self.store)
        self.assert_errno(errno.EBUSY, "", gms.pool, self.store, deadline=0)
        with gms.pool(self.store, mode="update", deadline=0) as pool:
            pool.publish({"x": torch.ones(5)})
        self.assertTrue(reader.refresh())
        self.assertEqual(reader.tensors()["x"].sum().item(), 5)


@needs_torch
class Into(Case):
    def setUp(self):
        super().setUp()
        self.there = Small(1).eval()
        self.there.norm.running_mean.normal_()
        self.there.rotary.frequencies.mul_(3)
        self.expected = self.there(IDS).detach()

    def test_module(self):
        gms.publish(self.there, self.store).close()

        def look():
            with gms.parameters_on_meta():
                module = Small(2)
            self.assertTrue(all(p.is_meta for p in module.parameters()))
            self.assertIs(module.head.weight, module.embed.weight)
            self.assertFalse(any(b.is_meta for b in module.buffers()))
            session = gms.attach(self.store)
            self.assertIs(session.into(module), module)
            self.assertTrue(torch.equal(module.eval()(IDS), self.expected))
            # one Parameter, shared and read-only
            self.assertIsInstance(module.embed.weight, nn.Parameter)
            self.assertIs(module.head.weight, module.embed.weight)
            self.assertEqual(len(list(module.parameters())), 3)
            self.assertFalse(any(p.requires_grad for p in module.parameters()))
            here = session.tensors()
            self.assertEqual(module.embed.weight.data_ptr(), here["embed.weight"].data_ptr())
            # buffers may be written, and share what they shared
            module.train()(IDS)
            module.low[4] = 77
            self.assertEqual(module.high[0, 0].item(), 77)
            self.assertEqual(here["low"][4].item(), 4)
            self.assertNotEqual(module.rotary.frequencies.data_ptr(), here["rotary.frequencies"].data_ptr())
        in_child(look)

    def test_from_a_model_file(self):
        """Of what is tied a file has one name, and it has nothing that is not persistent."""
        state = {n: t for n, t in self.there.state_dict().items() if n != "head.weight"}
        names = {torch.float32: "F32", torch.int64: "I64"}
        with tempfile.NamedTemporaryFile(suffix=".safetensors") as f:
            write_safetensors(f.name, {n: (names[t.dtype], list(t.shape), t.numpy(force=True).tobytes() if _numpy() else bytes(
                t.contiguous().view(-1).view(torch.uint8).tolist())) for n, t in state.items()})
            gms.load(self.store, f.name)
        with gms.parameters_on_meta():
            module = Small(2)
        module.rotary.frequencies.mul_(3)
        gms.attach(self.store).into(module)
        self.assertTrue(torch.equal(module.eval()(IDS), self.expected))
        self.assertIs(module.head.weight, module.embed.weight)

    def test_what_does_not_fit(self):
        published = self.there.state_dict()
        for name in ("norm.weight", "low", "norm.num_batches_tracked"):
            del published[name]
        published["embed.weight"] = published["head.weight"] = torch.zeros(16, 9)
        published["norm.bias"] = torch.zeros(8, dtype=torch.float16)
        gms.publish(published, self.store).close()
        with gms.parameters_on_meta():
            module = Small(2)
        module.rotary.frequencies = module.rotary.frequencies.to("meta")
        before = dict(module.named_parameters())
        session = gms.attach(self.store)
        with self.assertRaises(ValueError) as caught:
            session.into(module)
        for words in ["embed.weight is [16, 8] of torch.float32 in the module, and [16, 9] of torch.float32 in the store",
                      "norm.bias is [8] of torch.float32 in the module, and [8] of torch.float16",
                      "parameter norm.weight is missing", "buffer low is missing", "buffer norm.num_batches_tracked is missing",
                      "buffer rotary.frequencies is on the meta device"]:
            self.assertIn(words, str(caught.exception))
        self.assertTrue(all(p is before[n] for n, p in module.named_parameters()))
        with self.assertRaisesRegex(ValueError, "embed.weight is") as caught:
            session.into(module, strict=False)
        self.assertNotIn("missing", str(caught.exception))

    def test_empty_buffers(self):
        """In a file they lie where another one begins."""
        class Module(nn.Module):
            def __init__(self, fill):
                super().__init__()
                x = torch.full((100,), fill)
                for name, tensor in [("a", torch.empty(0)), ("b", x), ("c", x[:0]), ("d", torch.empty(0, 3))]:
                    self.register_buffer(name, tensor)
        gms.publish(Module(7.0), self.store).close()
        with tempfile.NamedTemporaryFile(suffix=".safetensors") as f:
            data = b"\0\0\0\x41" * 100  # 8.0
            write_safetensors(f.name, {"a": ("F32", [0], b""), "b": ("F32", [100], data), "c": ("F32", [0], b""),
                                       "d": ("F32", [0, 3], b"")})
            gms.load(self.store + "2", f.name)
        for store, fill in [(self.store, 7.0), (self.store + "2", 8.0)]:
            with gms.attach(store) as session:
                here, there = session.into(Module(0.0)), Module(fill)
                self.assertEqual([n for n, t in here.named_buffers() if not same(t, getattr(there, n))], [])

    def test_a_part(self):
        gms.publish({f"model.{n}": t for n, t in self.there.state_dict().items() if "norm" not in n}, self.store).close()
        with gms.parameters_on_meta():
            module = Small(2)
        gms.attach(self.store).into(module, strict=False, prefix="model.")
        self.assertTrue(module.norm.weight.is_meta)
        self.assertTrue(torch.equal(module.embed.weight, self.there.embed.weight))

    def test_wake_refreshes_parameters_in_place(self):
        gms.publish(self.there, self.store).close()
        with gms.parameters_on_meta():
            module = Small(2)
        session = gms.attach(self.store)
        session.into(module).eval()
        other = Small(3).eval()
        in_child(lambda: gms.publish(other, self.store, mode="update").close())
        session.sleep()
        self.assertTrue(session.refresh() or session.wake())
        session.state().mapped or session.wake()
        self.assertTrue(torch.equal(module.embed.weight, other.embed.weight))

    def test_parameters_elsewhere_are_real(self):
        """Other threads build as ever, and so does this one afterwards."""
        made = []
        with gms.parameters_on_meta():
            thread = threading.Thread(target=lambda: made.append(nn.Linear(2, 2)))
            thread.start()
            thread.join()
        made.append(nn.Linear(2, 2))
        self.assertFalse(any(p.is_meta for m in made for p in m.parameters()))


def _numpy():
    try:
        import numpy  # noqa: F401
    except ImportError:
        return False
    return True


@needs_torch
class Deaths(Case):
    def test_lost_context(self):
        """Torch raises at every synchronization then; the lock goes back all the same."""
        lost = {"synchronize": unittest.mock.Mock(side_effect=RuntimeError("lost"))}
        session = gms.publish({"x": torch.zeros(5)}, self.store)
        with unittest.mock.patch.multiple("gms.session", **lost):
            self.assertRaisesRegex(RuntimeError, "lost", session.close)
        with unittest.mock.patch.multiple(sys.modules["gms.pool"], **lost):
            pool = gms.pool(self.store, deadline=0)
            pool._open()
            self.assertRaisesRegex(RuntimeError, "lost", pool.close)
            with self.assertRaisesRegex(RuntimeError, "lost"), gms.pool(self.store, deadline=0):
                1 / 0
            self.assertRaisesRegex(RuntimeError, "lost", gms.publish, {"x": torch.zeros(5)}, self.store, deadline=0)
        with gms.pool(self.store, deadline=0) as pool:
            pool._release_cached = unittest.mock.Mock(side_effect=RuntimeError("lost"))
            pool._open()
            self.assertRaisesRegex(RuntimeError, "lost", pool.close)
        self.assert_errno(errno.EBADF, "closed", pool.stats)
        gms.pool(self.store, deadline=0).close()

    def test_writer_killed(self):
        gms.publish({"x": torch.zeros(5)}, self.store, "old").close()

        def write(child):
            with gms.pool(self.store) as pool:
                child.send(pool.stats().pieces)
                signal.pause()
        child = Child(write)
        child.receive()
        self.assert_errno(errno.EBUSY, "", gms.attach, self.store, deadline=0)
        child.kill()
        self.assertEqual(gms.attach(self.store, deadline=5).identity, "old")

    def test_publisher_killed(self):
        """What is published outlives who did it."""
        def write(child):
            session = gms.publish({"x": torch.arange(5)}, self.store)
            child.send(session.generation)
            signal.pause()
        child = Child(write)
        self.assertEqual(child.receive(), 1)
        x = gms.attach(self.store).tensors()["x"]
        child.kill()
        self.assertEqual(x.tolist(), [0, 1, 2, 3, 4])
        self.assertEqual(gms.attach(self.store).tensors()["x"].tolist(), [0, 1, 2, 3, 4])

    def test_daemon_killed(self):
        """Tensors stay valid; what needs the daemon says that it has gone."""
        other = Daemon()
        self.addCleanup(other.stop)
        gms.publish({"x": torch.arange(5)}, self.store, socket=other.socket).close()
        session = gms.attach(self.store, socket=other.socket)
        x = session.tensors()["x"]
        other.process.kill()
        other.process.wait()
        self.assertEqual(next(session.watch(5)).kind, "closed")
        self.assert_errno(errno.ENOTCONN, "", session.state)
        session.close()
        self.assertEqual(x.tolist(), [0, 1, 2, 3, 4])

    def test_tensor_in_a_forked_child(self):
        """Dropped there, it leaves the parent's alone."""
        gms.publish({"x": torch.arange(5)}, self.store).close()
        session = gms.attach(self.store)
        here = session.tensors()

        def drop():
            self.assertEqual(here["x"].tolist(), [0, 1, 2, 3, 4])
            gone = weakref.ref(here.pop("x"))
            gc.collect()
            self.assertIsNone(gone())
            session.close()
        in_child(drop)
        self.assertEqual(here["x"].tolist(), [0, 1, 2, 3, 4])
        self.assertEqual(session.state().mode, "ro")
