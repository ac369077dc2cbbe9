# SPDX-License-Identifier: MIT
"""A process that is attached to what a store has published: its tensors, its sleep, and what it hears from gmsd."""
from __future__ import annotations

import contextlib
import math
import select
import socket
import time
from ctypes import byref, c_int, c_uint64
from typing import TYPE_CHECKING, Iterator, NamedTuple, TypeVar

from . import _library, modules, tensors
from ._devices import synchronize
from ._handle import Handle
from ._library import EVENTS, MODE_NAMES, Error, check, lib

if TYPE_CHECKING:
    import torch
    Module = TypeVar("Module", bound=torch.nn.Module)


_POLL_MAX = 2**31 - 1  # milliseconds


class Event(NamedTuple):
    kind: str        # "lock_wanted", "published", "revoked", "resumed" (gmsd was restarted, nothing was lost), "closed"
    generation: int  # of "published"
    text: str


class State(NamedTuple):
    mode: str         # granted: "ro", "update", "rw"
    generation: int   # of the layout that this session works on; 0 if not published yet
    newest: int       # generation that the store has published; 0 none
    identity: str     # of the layout that this session works on
    hash: str         # of its structure, hexadecimal
    allocations: int
    bytes: int        # physical
    waiters: int      # sessions that wait for the store's lock
    mapped: bool      # everything is mapped
    sealed: bool
    store_state: str  # "EMPTY", "RW", "COMMITTED", "RO", "SEALED"
    device: str       # UUID of the GPU; "host"
    session: int


class Session:
    """
    Made by attach() and Pool.publish(). Holds the store's lock, and so what it is attached to, until it is closed and its
    tensors are gone.

    What is published is mapped read-only, and torch does not know that: writing to such a tensor is a SIGSEGV on a host
    store, and on a GPU an illegal memory access that costs this process its CUDA context. clone() what is to be written.

    Errors are gms.Error; a closed session's is errno.EBADF. A session works in the process that made it: in a child of
    fork() its calls fail with errno.ECHILD.
    """

    def __init__(self, handle: Handle, device: str) -> None:
        self._handle, self._device = handle, device
        self._lost = False  # "closed" was told
        self._watchers: set[socket.socket] = set()  # a byte into one wakes a watch(); who takes it out closes it

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<gms.Session on {self._handle.store}>"

    # ---- tensors

    def manifest(self, prefix: str = "") -> list[tensors.TensorInfo]:
        """What there is, by name. Needs no torch. One round trip."""
        with self._handle.use() as g, tensors.rows(g) as found:
            return [tensors.info(row) for row in found if row.name.startswith(prefix.encode())]

    def tensors(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """
        All tensors whose names begin with `prefix`, over the shared memory: no copy, read-only (see the class), on the
        store's device. Tied names have one tensor object. They stay valid after close(); asleep they must not be touched.
        Before the last is dropped, work on it that is queued on a GPU must be done. One round trip, and 6 us a tensor.

        errno.EOPNOTSUPP: torch has no such type (F6_*, or a type newer than this torch); errno.EBADMSG: somebody
        published what is no manifest; errno.EACCES: asleep.
        """
        with self._handle.use() as g:
            return tensors.all_tensors(g, prefix)

    def into(self, module: Module, *, strict: bool = True, prefix: str = "") -> Module:
        """
        Gives a module its parameters and buffers from the store, which has them as `prefix` + their names, and returns
        it. Build it under parameters_on_meta(), and it never has memory of its own for them.

        - A parameter becomes one over the shared memory: read-only (see the class), requires_grad False.
          What the module ties stays one Parameter; any of its names will do.
        - A buffer becomes a private copy that may be written; those that share a storage share the copy.
        - A buffer that the store does not have and that is not persistent stays, on the store's device.

        ValueError names all that is wrong, and the module is as it was: a shape or dtype differs, a parameter or
        persistent buffer is missing (not with strict=False), a buffer on the meta device is in no store.
        """
        with self._handle.use() as g:
            return modules.fill(g, module, self._device, strict, prefix)

    # ---- addresses

    def sleep(self) -> None:
        """
        Gives the physical memory back and keeps every address: tensors, pointers and captured CUDA graphs are good again
        after wake(). Until then nobody may touch them. Waits for what torch has queued on the GPU. The lock is kept.
        """
        synchronize(self._device)
        with self._handle.use() as g:
            check(lib.gms_unmap_all(g))

    def wake(self) -> bool:
        """
        Maps everything again at the same addresses. True: another generation of the same structure was published
        meanwhile and taken by refresh(), so contents changed. errno.ESTALE: the structure differs; attach anew.
        """
        changed = c_int()
        with self._handle.use() as g:
            check(lib.gms_remap_all(g, byref(changed)))
        return bool(changed.value)

    def refresh(self) -> bool:
        """
        Moves to the newest generation, at the same addresses: tensors show the new bytes. False: there is none newer.
        Waits for what torch has queued on the GPU; nothing may be queued meanwhile. Asleep, only the session moves. Buffers
        that into() copied stay as they are.

        errno.ESTALE: the new structure differs (attach anew); errno.EKEYREJECTED: not the identity demanded;
        errno.ENOENT: nothing is published any more.
        """
        synchronize(self._device)
        changed = c_int()
        with self._handle.use() as g:
            check(lib.gms_refresh(g, byref(changed)))
        return bool(changed.value)

    # ---- state and events

    def state(self) -> State:
        """The session's and its store's state now. One round trip."""
        s = self._handle.state()
        return State(MODE_NAMES[s.mode], s.generation, s.newest, s.identity.decode(), bytes(s.hash).hex(), s.allocations,
                     s.bytes, s.waiters, bool(s.mapped), bool(s.sealed), s.store_state.decode(), s.device.decode(), s.session)

    @property
    def identity(self) -> str:
        return self.state().identity

    @property
    def generation(self) -> int:
        return self.state().generation

    @property
    def hash(self) -> str:
        return self.state().hash

    def fileno(self) -> int:
        """A descriptor that polls readable while an event may be waiting. Do not read or close it."""
        with self._handle.use() as g:
            return check(lib.gms_get_fd(g))

    def watch(self, timeout: float | None = None) -> Iterator[Event]:
        """
        Events as they come; of each kind the latest is kept. Ends after "closed", when the session is closed (any thread may
        do that), and when no event came for `timeout` seconds (None: never, 0: after those that are there).
        """
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        mine, closers = socket.socketpair()
        poll.register(mine, select.POLLIN)
        self._watchers.add(closers)
        try:
            until = _after(timeout)
            while not self._lost:
                event = self._next_event()
                if event is not None:
                    self._lost = event.kind == "closed"
                    yield event
                    until = _after(timeout)
                    continue
                left = until - time.monotonic()
                if self._handle.closed or left <= 0:
                    return
                for fd, _ in poll.poll(min(left * 1000 + 1, _POLL_MAX)):
                    if fd == mine.fileno():
                        mine.recv(1)  # if nothing is closed here, a child of fork() has closed its copy
        finally:
            with contextlib.suppress(KeyError):
                self._watchers.remove(closers)
                closers.close()
            mine.close()

    def _next_event(self) -> Event | None:
        """None: there is none, or the session is closed."""
        event = _library.Event()
        try:
            with self._handle.use() as g:
                found = check(lib.gms_dispatch(g, byref(event)))
        except Error:
            if self._handle.closed:
                return None
            raise
        if not found:
            return None
        return Event(EVENTS.get(event.kind, str(event.kind)), event.generation, event.text.decode(errors="replace"))

    def close(self) -> None:
        """
        Gives the lock and the memory back; once tensors are left, when the last of them goes. Waits for what torch has
        queued on the GPU. Calls that are under way in other threads end as ever, and the memory goes after the last of them;
        a watch() ends. Closing twice is nothing.
        """
        try:
            synchronize(self._device)  # fails for ever once the context is lost
        finally:
            self._handle.close()
            with contextlib.suppress(KeyError):
                while True:
                    closer = self._watchers.pop()
                    with closer, contextlib.suppress(OSError):
                        closer.send(b"x")


def _after(timeout: float | None) -> float:
    return math.inf if timeout is None else time.monotonic() + timeout


def attach(store: str, *, mode: str = "ro", identity: str | None = None, deadline: float | None = None,
           socket: str | None = None, label: str | None = None, address: int | None = None,
           bytes: int | None = None) -> Session:
    """
    Attaches to what is published in `store` ("cuda:0/weights"): everything is mapped read-only when it returns. A whole
    GPU in large allocations takes about 10 ms.

    `deadline`: how long to wait for the lock, and for a first publication: seconds, 0 now or never, None for ever.
    `identity`: demanded of what is published; errno.EKEYREJECTED if it is another. `mode`: "ro", or "adopt" to take over a
    sealed layout read-write. `address`: maps at this address (a multiple of 2 MiB for GPUs), the same in every process
    that asks for it; errno.EEXIST if it is in use. `bytes` to reserve there: by default what is published needs.
    `socket`, `label` (for people, shown by gmsctl status): as in gmsclient.h.

    errno.ENOENT, errno.ECONNREFUSED: gmsd is not running; errno.ETIMEDOUT, errno.EBUSY (deadline 0); errno.ENODEV.
    """
    if mode not in ("ro", "adopt"):
        raise ValueError(f"no such mode to attach in: {mode!r}; \"ro\" or \"adopt\". gms.pool() writes")
    handle = Handle(store, socket)
    with handle.closed_on_error():
        handle.connect(mode, deadline, label, identity)
        state = handle.state()
        if address is not None:
            at = c_uint64()
            check(lib.gms_reserve(handle.g, address, state.bytes if bytes is None else bytes, byref(at)))
        check(lib.gms_attach(handle.g))
    return Session(handle, state.device.decode())


def manifest(store: str, *, socket: str | None = None) -> list[tensors.TensorInfo]:
    """The tensors that rest in any store, without its lock; addresses are 0. errno.ENOENT: there is no such store."""
    handle = Handle(None, socket)
    with contextlib.closing(handle):
        handle.connect("none", 0)
        with tensors.rows(handle.g, store) as found:
            return [tensors.info(row) for row in found]
