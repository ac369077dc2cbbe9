# SPDX-License-Identifier: MIT
"""A struct gms as an object: opened, connected, and closed once, at the latest when nothing refers to it any more."""
from __future__ import annotations

import contextlib
import errno
import time
import weakref
from ctypes import byref, c_void_p
from typing import Iterator

from ._library import FOREVER, MODES, ConnectOptions, Error, State, check, lib, milliseconds, text


class Handle:
    def __init__(self, store: str | None, socket: str | None) -> None:
        self.store, self.socket = store, socket
        made = c_void_p()
        check(lib.gms_open(byref(made), text(socket), text(store)))
        # Not at exit: the process's end gives everything back at once, and tensors may still be in use.
        self._close = weakref.finalize(self, lib.gms_close, made.value)
        self._close.atexit = False
        self._made: int | None = made.value
        self._inside: list[None] = []  # an item a call; no counter, as one would need a lock, which fork() and signals break

    @property
    def g(self) -> int:
        """The struct gms, for calls of the library that no close() can overtake. For all others there is use()."""
        if self._made is None:
            raise Error(errno.EBADF, f"the session on {self.store} is closed; make another one")
        return self._made

    @property
    def closed(self) -> bool:
        return self._made is None

    @contextlib.contextmanager
    def use(self) -> Iterator[int]:
        """The struct gms, which is there until the block ends, whoever closes the handle meanwhile."""
        self._inside.append(None)  # before `g` looks, as close() looks the other way round: one of the two sees the other
        try:
            yield self.g
        finally:
            self._inside.pop()
            self._free()

    def connect(self, mode: str, deadline: float | None, label: str | None = None, identity: str | None = None) -> None:
        """Waits for the lock. A signal whose handler raises (Ctrl-C) ends that; after any other it goes on."""
        if mode not in MODES:
            raise ValueError(f"no such mode: {mode!r}; there are {', '.join(MODES)}")
        until = milliseconds(deadline)
        if until != FOREVER:
            until += round(time.monotonic() * 1000)
        while True:
            left = FOREVER if until == FOREVER else max(0, until - round(time.monotonic() * 1000))
            options = ConnectOptions(mode=MODES[mode], deadline_ms=left, label=text(label), identity=text(identity))
            try:
                check(lib.gms_connect(self.g, byref(options)))
                return
            except Error as e:
                if e.errno != errno.EINTR:
                    raise

    def state(self) -> State:
        state = State()
        with self.use() as g:
            check(lib.gms_state(g, byref(state)))
        return state

    @contextlib.contextmanager
    def closed_on_error(self) -> Iterator[None]:
        """Gives the lock back at once when what is inside fails: the exception may live for long, and the handle with it."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Calls that are under way in other threads have the struct still; the last of them frees it."""
        self._made = None
        self._free()

    def _free(self) -> None:
        if self.closed and not self._inside:
            self._close()
