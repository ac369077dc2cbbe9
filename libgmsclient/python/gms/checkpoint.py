# SPDX-License-Identifier: MIT
"""Model files (safetensors) into a store, or compared with one. Needs no torch: bytes go from the file to their place."""
from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from ctypes import byref, c_char_p, c_void_p, create_string_buffer
from typing import Callable, Iterator, NamedTuple, Sequence, Union

from . import _library
from ._handle import Handle
from ._library import COMMIT_LEAVE, Error, check, lib, terminated, text

Paths = Union[str, "os.PathLike[str]", Sequence[Union[str, "os.PathLike[str]"]]]


class Progress(NamedTuple):
    files: int
    tensors: int
    total: int      # bytes of all tensors
    done: int       # of them
    seconds: float  # since the beginning


def load(store: str, paths: Paths, *, identity: str | None = None, tag: str | None = None, mode: str = "rw",
         deadline: float | None = None, threads: int = 8, progress: Callable[[Progress], object] | None = None,
         socket: str | None = None, label: str | None = None) -> str:
    """
    Reads safetensors files, or a directory (by its index if it has one), into a store and publishes them; returns the
    identity: the one given, or a digest of the content ("xxh3-128:...").

    `mode` "rw" has the store to itself, "update" builds beside the readers of what is published. `threads` share the
    work; eight saturate the link to an H200. `progress` is called about ten times a second, and at the end.

    Whatever fails, Ctrl-C included, leaves what was published before. errno.EBADMSG: a file is not what it should be, the
    text says where and why. Other errors as attach()'s, and errno.ENOMEM.
    """
    with _opened(paths) as checkpoint:
        handle = Handle(store, socket)
        try:
            handle.connect(mode, deadline, label)
            check(lib.gms_checkpoint_load(checkpoint, handle.g, text(tag)))
            _work(checkpoint, threads, progress)
            digest = create_string_buffer(513)
            check(lib.gms_checkpoint_finish(checkpoint, digest))
            identity = identity or digest.value.decode()
            check(lib.gms_commit(handle.g, text(identity), COMMIT_LEAVE))
        finally:
            handle.close()
    return identity


def verify(store: str, paths: Paths, *, deadline: float | None = None, threads: int = 8,
           progress: Callable[[Progress], object] | None = None, socket: str | None = None, label: str | None = None) -> str:
    """
    Compares what is published in a store with safetensors files, every byte, and returns their identity (a digest).
    errno.EILSEQ: bytes differ, the text says where first; errno.ENOENT, errno.EBADMSG: a tensor is missing, another, or one
    too many. `deadline` and so on as load()'s.
    """
    with _opened(paths) as checkpoint:
        handle = Handle(store, socket)
        try:
            handle.connect("ro", deadline, label)
            check(lib.gms_attach(handle.g))
            check(lib.gms_checkpoint_verify(checkpoint, handle.g))
            _work(checkpoint, threads, progress)
            digest = create_string_buffer(513)
            check(lib.gms_checkpoint_finish(checkpoint, digest))
        finally:
            handle.close()
    return digest.value.decode()


@contextlib.contextmanager
def _opened(paths: Paths) -> Iterator[c_void_p]:
    names = [terminated(os.fsencode(p)) for p in ([paths] if isinstance(paths, (str, os.PathLike)) else paths)]
    made = c_void_p()
    check(lib.gms_checkpoint_open(byref(made), (c_char_p * len(names))(*names), len(names)))
    try:
        yield made
    finally:
        lib.gms_checkpoint_close(made)


def _outwait(inside: list[None]) -> None:
    """Until there is none, whatever the handlers of further signals raise: the caller frees what they work on."""
    while inside:
        try:
            while inside:
                time.sleep(0.01)
        except BaseException:
            continue


def _work(checkpoint: c_void_p, threads: int, progress: Callable[[Progress], object] | None) -> None:
    """Has threads do the work, while this one reports and can be interrupted."""
    failures: list[Error] = []
    inside: list[None] = []  # an item a worker. Thread.join() cannot tell: some Pythons' takes a thread for ended when interrupted
    stopped = False
    began = time.monotonic()

    def work() -> None:
        inside.append(None)
        try:
            if not stopped:
                check(lib.gms_checkpoint_work(checkpoint))
        except Error as e:
            failures.append(e)
        finally:
            inside.pop()

    def report() -> None:
        if progress is not None:
            p = _library.Progress()
            check(lib.gms_checkpoint_progress(checkpoint, byref(p)))
            progress(Progress(p.files, p.tensors, p.total, p.done, time.monotonic() - began))

    workers = [threading.Thread(target=work, name="gms-load") for _ in range(max(1, threads))]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(0.1)
            while worker.is_alive():
                report()
                worker.join(0.1)
        report()
    except BaseException:
        lib.gms_checkpoint_cancel(checkpoint)
        raise
    finally:
        stopped = True
        _outwait(inside)
    if failures:
        raise next((e for e in failures if e.errno != errno.ECANCELED), failures[0])
