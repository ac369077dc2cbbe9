# SPDX-License-Identifier: MIT
"""
A writer of torch tensors: what is allocated inside a pool lies in the store from the beginning, and publishing copies only
the rest.

On a GPU that is a torch.cuda.MemPool over the allocator of libgmsclient. Torch's CPU allocator cannot be redirected, so
on a host store everything is copied.
"""
from __future__ import annotations

import contextlib
import errno
import threading
import warnings
import weakref
from ctypes import byref, c_void_p
from typing import TYPE_CHECKING, Mapping, NamedTuple

from . import _library
from ._devices import synchronize, torch_device
from ._handle import Handle
from ._library import Error, check, lib, text
from .session import Session

if TYPE_CHECKING:
    import torch

    from .layout import Layout

_LAST = threading.local()  # .pools: this thread's that are not published yet, by (store, socket)


class PoolStats(NamedTuple):
    """Bytes, but for the first two."""
    slabs: int
    pieces: int
    reserved: int      # of all slabs: what the device gives
    allocated: int     # of all pieces, as rounded and aligned
    requested: int     # of all pieces, as asked for
    largest_free: int
    reserved_peak: int
    requested_peak: int

    @property
    def internal_fragmentation(self) -> float:
        return 1 - self.requested / self.allocated if self.allocated else 0.0

    @property
    def external_fragmentation(self) -> float:
        free = self.reserved - self.allocated
        return 1 - self.largest_free / free if free else 0.0


class Pool:
    """
    Made by pool(): holds the store's lock for writing, until it has published or is closed; at the latest when this thread
    makes another one on the store, or ends.
    """

    def __init__(self, store: str, *, tag: str = "torch", expected: int = 0, mode: str = "rw", deadline: float | None = None,
                 socket: str | None = None, label: str | None = None) -> None:
        if mode not in ("rw", "update"):
            raise ValueError(f"no such mode to write in: {mode!r}; \"rw\" or \"update\"")
        self._key = (store, socket)
        forgotten = _pools().get(self._key)
        if forgotten is not None:
            if forgotten._routing is not None:
                raise Error(errno.EDEADLK, f"this thread is inside a pool of {store}, whose lock another one would wait for")
            forgotten.close()
        self._tag, self._expected = tag, expected
        self._pool: c_void_p | None = None
        self._close_pool: weakref.finalize[[c_void_p], Pool] | None = None
        self._mem_pool: torch.cuda.MemPool | None = None
        self._routing: contextlib.ExitStack | None = None
        self._handle: Handle | None = Handle(store, socket)
        with self._handle.closed_on_error():
            self._handle.connect(mode, deadline, label)
            self._device = self._handle.state().device.decode()
        _pools()[self._key] = self

    def __repr__(self) -> str:
        return f"<gms.Pool on {self._key[0]}>"

    def __enter__(self) -> Pool:
        self._live()
        if self._routing is not None:
            raise Error(errno.EBUSY, f"this pool of {self._key[0]} is entered already; leave it first")
        try:
            with contextlib.ExitStack() as stack:
                if self._device != "host":
                    self._route(self._open(), stack)
                self._routing = stack.pop_all()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self._stop()
        else:
            self.close()

    def publish(self, what: torch.nn.Module | Mapping[str, torch.Tensor], identity: str | None = None) -> Session:
        """
        Publishes the parameters and buffers of a module (non-persistent buffers too), or the tensors of a dict, atomically
        under `identity`; and returns a session that reads them. The pool is finished with that, and its lock is the
        session's: no other writer can come in between.

        What was allocated in the pool is published where it lies; everything else is copied into the store. Tied tensors
        stay tied, and views of one storage stay that. Waits for the GPU, and for no work that is queued later.

        From then on all that was allocated in the pool is read-only in this process (see Session), what was not
        published too: finish training, and drop optimizer and gradients, before. A module stays usable: parameters
        published in place get requires_grad False, and buffers published in place are replaced by private copies.

        TypeError: what cannot be published, by name (a meta tensor, a sparse one, a type that safetensors has not).
        ValueError: a NUL character in a name or the identity.
        errno.ENOMEM: no room for what has to be copied. errno.EINVAL: no such identity or name can be. After any of these the
        pool can still publish something else; where gmsd does not let it go back, it is closed.
        errno.EBADF: it has published or is closed.
        """
        from .layout import Layout
        handle = self._live()
        layout = Layout(what)
        self._stop()
        ours = self._pool is None
        pool = self._open(layout.bytes)
        try:
            layout.place(handle.g, pool)
            layout.copy_buffers()
            synchronize(self._device)  # protecting pages that queued work writes to would cost the context
            self._release_cached(layout)
            check(lib.gms_pool_trim(pool))
            layout.put(handle.g)
            check(lib.gms_commit(handle.g, text(identity), 0))
        except BaseException:
            self._give_back(layout, ours)
            raise
        layout.settle()
        session = Session(handle, self._device)
        self._finish()
        return session

    def stats(self) -> PoolStats:
        s = _library.PoolStats()
        self._live()
        if self._pool is not None:
            check(lib.gms_pool_stats(self._pool, byref(s)))
        return PoolStats(*(getattr(s, field) for field in PoolStats._fields))

    def close(self) -> None:
        """
        Gives up what is not published: the lock goes back at once, and what was published before stays. The memory goes
        when the last tensor in it does. Closing twice is nothing.
        """
        handle = self._handle
        if handle is None:
            return
        with contextlib.ExitStack() as stack:  # in this order from the last on, whichever of them a lost context lets fail
            stack.callback(handle.close)
            stack.callback(self._finish)
            stack.callback(lib.gms_disconnect, handle.g)
            stack.callback(synchronize, self._device)
            stack.callback(self._stop)

    # ---- inside

    def _live(self) -> Handle:
        if self._handle is None:
            raise Error(errno.EBADF, f"the pool of {self._key[0]} has published or is closed; make another one")
        return self._handle

    def _open(self, expected: int = 0) -> c_void_p:
        """The struct gms_pool; at the latest possible moment, when the most is known."""
        handle = self._live()
        if self._pool is None:
            made = c_void_p()
            options = _library.PoolOptions(tag=text(self._tag), expected=self._expected or expected)
            check(lib.gms_pool_open(byref(made), handle.g, byref(options)))
            self._pool = made
            self._close_pool = weakref.finalize(self, lib.gms_pool_close, made)
            self._close_pool.atexit = False
        return self._pool

    def _give_back(self, layout: Layout, ours: bool) -> None:
        """After a failure of publish(): nothing of it is left for the next one, nor, if it was `ours`, a pool of its size."""
        pool = self._pool
        assert self._handle is not None and pool is not None and self._close_pool is not None
        try:
            synchronize(self._device)  # it copies to the pieces
            layout.give_back(self._handle.g, pool)
            if ours:
                check(lib.gms_pool_trim(pool))
                self._close_pool()
                self._pool = None
        except Error:  # what failed first is worth more
            self.close()
        except BaseException:
            self.close()
            raise

    def _route(self, pool: c_void_p, stack: contextlib.ExitStack) -> None:
        """Sends what this thread's torch allocates on the GPU to the pool, until the stack is unwound."""
        import torch
        if tuple(int(n) for n in torch.__version__.split(".")[:2]) < (2, 8):
            raise Error(errno.EOPNOTSUPP, f"torch {torch.__version__} gives memory that outlives its MemPool back to the wrong "
                                          "allocator; a pool on a GPU needs 2.8")
        device = torch_device(self._device)
        if self._mem_pool is None:
            with torch.cuda.device(device):  # it is the current device's
                self._mem_pool = torch.cuda.MemPool(_allocator().allocator())  # type: ignore[no-untyped-call]
        check(lib.gms_torch_use(pool))
        stack.callback(lib.gms_torch_clear, pool)
        stack.enter_context(torch.cuda.use_mem_pool(self._mem_pool, device))

    def _stop(self) -> None:
        if self._routing is not None:
            routing, self._routing = self._routing, None
            routing.close()

    def _release_cached(self, layout: Layout | None = None) -> None:
        """Makes torch give back the segments in which no tensor is left; warns of those that `layout` does not name."""
        if self._mem_pool is not None:
            import gc

            import torch
            gc.collect()
            # torch keeps cuBLAS a workspace; one that was made in here would be read-only to all that comes later.
            torch._C._cuda_clearCublasWorkspaces()
            if layout is not None:
                self._warn_of_others(layout)
            self._mem_pool = None
            torch.cuda.empty_cache()

    def _warn_of_others(self, layout: Layout) -> None:
        assert self._mem_pool is not None
        left = [block["size"] for segment in self._mem_pool.snapshot()  # type: ignore[no-untyped-call]
                for block in segment["blocks"]
                if block["state"] == "active_allocated" and not layout.has(block["address"], block["size"])]
        if left:
            warnings.warn(f"{len(left)} tensors of {sum(left) / 2**20:.1f} MiB that are not published live in the pool of "
                          f"{self._key[0]}: they are read-only from now on, and their memory is published with the rest. Drop "
                          "what is not needed (optimizer, gradients) before publish(), and clone() outside what is",
                          RuntimeWarning, stacklevel=4)

    def _finish(self) -> None:
        """Forgets the pool, not its memory: that is the handle's, and torch's as long as there are tensors in it."""
        if _pools().get(self._key) is self:
            del _pools()[self._key]
        try:
            self._release_cached()
        finally:
            if self._close_pool is not None:
                self._close_pool()
            self._pool = self._handle = self._mem_pool = None


def _pools() -> dict[tuple[str, str | None], Pool]:
    pools: dict[tuple[str, str | None], Pool] = _LAST.__dict__.setdefault("pools", {})
    return pools


def _allocator() -> torch.cuda.memory.CUDAPluggableAllocator:
    """One for the process, for ever: torch frees through it what outlives any pool."""
    global _ALLOCATOR
    if _ALLOCATOR is None:
        import torch
        _ALLOCATOR = torch.cuda.memory.CUDAPluggableAllocator(_library.path, "gms_torch_alloc", "gms_torch_free")
    return _ALLOCATOR


_ALLOCATOR: torch.cuda.memory.CUDAPluggableAllocator | None = None


def pool(store: str, *, tag: str = "torch", expected: int = 0, mode: str = "rw", deadline: float | None = None,
         socket: str | None = None, label: str | None = None) -> Pool:
    """
    A pool on a store, for a with-statement: what this thread's torch allocates on the store's GPU inside it lies in the
    store (threads that it starts, such as backward's, allocate elsewhere). Publish it inside or after:

        with gms.pool("cuda:0/weights"):
            model = build().cuda()
        gms.publish(model, identity="model@1")

    Waits for the lock: `mode` "rw" has the store to itself, "update" builds beside the readers of what is published.
    An exception inside gives everything up, and leaves what was published before.

    `deadline`: seconds, 0 now or never, None for ever. `expected`: bytes that will be allocated in all, when that is known:
    fewer and fuller slabs. `tag`: of the allocations, for people. One pool a GPU may be entered at a time (errno.EBUSY).
    Other errors as attach()'s.
    """
    return Pool(store, tag=tag, expected=expected, mode=mode, deadline=deadline, socket=socket, label=label)


def publish(what: torch.nn.Module | Mapping[str, torch.Tensor], store: str | None = None, identity: str | None = None,
            **options: object) -> Session:
    """
    Pool.publish() on this thread's pool of `store` (None: the one that was made last), or, where there is none, on a new
    one, made with pool()'s `options`. TypeError: options for a pool that there is.
    """
    ours = [p for p in _pools().values() if store is None or (store, options.get("socket")) == p._key]
    if ours:
        ignored = sorted(options.keys() - {"socket"})
        if ignored:
            raise TypeError(f"this thread's pool of {ours[-1]._key[0]} was made already, without this: {', '.join(ignored)}")
        return ours[-1].publish(what, identity)
    if store is None:
        raise ValueError("this thread has no pool that is not published; name a store")
    made = pool(store, **options)  # type: ignore[arg-type]
    try:
        return made.publish(what, identity)
    except BaseException:
        made.close()
        raise
