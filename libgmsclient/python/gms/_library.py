# SPDX-License-Identifier: MIT
"""
libgmsclient by ctypes: its structs and functions as gmsclient.h declares them, and errors as exceptions. No behaviour of its own.

The library is $GMS_LIBRARY; else that of the tree or prefix which this file lies in; else what the loader finds.
"""
from __future__ import annotations

import ctypes
import math
import os
import pathlib
from ctypes import (CFUNCTYPE, POINTER, c_char, c_char_p, c_int, c_int64, c_size_t, c_ssize_t, c_uint8, c_uint32, c_uint64,
                    c_void_p)
from typing import Any

MAJOR = "1"
FOREVER = 2**64 - 1
MODES = {"none": 0, "ro": 1, "update": 2, "rw": 3, "rw_or_ro": 4, "adopt": 5}
MODE_NAMES = {number: name for name, number in MODES.items()}
EVENTS = {1: "lock_wanted", 2: "published", 3: "revoked", 4: "resumed", 5: "closed"}
PARAMETER, BUFFER = 1, 2
TENSOR_PREFIX = b"tensor/"
COMMIT_LEAVE = 1


class Error(OSError):
    """
    A call of the library failed. `errno` says how (errno.EKEYREJECTED: another identity is published, errno.ESTALE: another
    structure, errno.ETIMEDOUT, ...: gmsclient.h lists them for each call); the text says what was asked, what is, and what to do.
    """

    def __init__(self, number: int, text: str) -> None:
        super().__init__(number, text)

    def __str__(self) -> str:
        return str(self.strerror)


class Growing(ctypes.Structure):
    """A struct that begins with its size."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(size=ctypes.sizeof(self), **fields)


class ConnectOptions(Growing):
    _fields_ = [("size", c_uint32), ("mode", c_uint32), ("deadline_ms", c_uint64), ("label", c_char_p), ("identity", c_char_p)]


class Allocation(Growing):
    _fields_ = [("size", c_uint32), ("access", c_uint32), ("id", c_uint64), ("slot", c_uint64), ("bytes", c_uint64),
                ("aligned", c_uint64), ("address", c_uint64), ("tag", c_char * 65)]


class State(Growing):
    _fields_ = [("size", c_uint32), ("mode", c_uint32), ("session", c_uint64), ("generation", c_uint64), ("newest", c_uint64),
                ("allocations", c_uint64), ("bytes", c_uint64), ("waiters", c_uint64), ("granularity", c_uint64),
                ("sealed", c_uint32), ("mapped", c_uint32), ("hash", c_uint8 * 16), ("store_state", c_char * 16),
                ("identity", c_char * 513), ("device", c_char * 48)]


class Event(Growing):
    _fields_ = [("size", c_uint32), ("kind", c_uint32), ("generation", c_uint64), ("text", c_char * 256)]


class Tensor(Growing):
    _fields_ = [("size", c_uint32), ("dtype", c_uint32), ("kind", c_uint32), ("rank", c_uint32), ("name", c_char_p),
                ("shape", POINTER(c_int64)), ("strides", POINTER(c_int64)), ("slot", c_uint64), ("offset", c_uint64),
                ("bytes", c_uint64), ("storage_offset", c_uint64), ("storage_bytes", c_uint64), ("address", c_uint64)]


class TensorList(Growing):
    _fields_ = [("size", c_uint32), ("n", c_uint32), ("tensors", c_void_p)]


class PoolOptions(Growing):
    _fields_ = [("size", c_uint32), ("reserved", c_uint32), ("tag", c_char_p), ("expected", c_uint64), ("slab_max", c_uint64)]


class Piece(Growing):
    _fields_ = [("size", c_uint32), ("reserved", c_uint32), ("slot", c_uint64), ("offset", c_uint64), ("bytes", c_uint64),
                ("address", c_uint64)]


class PoolStats(Growing):
    _fields_ = [("size", c_uint32), ("slabs", c_uint32), ("reserved", c_uint64), ("allocated", c_uint64), ("requested", c_uint64),
                ("largest_free", c_uint64), ("pieces", c_uint64), ("reserved_peak", c_uint64), ("requested_peak", c_uint64)]


class Progress(Growing):
    _fields_ = [("size", c_uint32), ("files", c_uint32), ("tensors", c_uint64), ("total", c_uint64), ("done", c_uint64),
                ("direct", c_uint64)]


_G = c_void_p  # struct gms *, and all other handles
_PROTOTYPES = {
    "gms_version": (c_char_p, []),
    "gms_last_error": (c_char_p, []),
    "gms_open": (c_int, [POINTER(_G), c_char_p, c_char_p]),
    "gms_close": (None, [_G]),
    "gms_connect": (c_int, [_G, POINTER(ConnectOptions)]),
    "gms_disconnect": (c_int, [_G]),
    "gms_attach": (c_int, [_G]),
    "gms_allocations": (c_int, [_G, POINTER(Allocation), c_size_t, POINTER(c_size_t)]),
    "gms_reserve": (c_int, [_G, c_uint64, c_uint64, POINTER(c_uint64)]),
    "gms_unmap_all": (c_int, [_G]),
    "gms_remap_all": (c_int, [_G, POINTER(c_int)]),
    "gms_refresh": (c_int, [_G, POINTER(c_int)]),
    "gms_commit": (c_int, [_G, c_char_p, c_uint32]),
    "gms_metadata_delete": (c_int, [_G, POINTER(c_char_p), c_size_t]),
    "gms_state": (c_int, [_G, POINTER(State)]),
    "gms_get_fd": (c_int, [_G]),
    "gms_dispatch": (c_int, [_G, POINTER(Event)]),
    "gms_pool_open": (c_int, [POINTER(c_void_p), _G, POINTER(PoolOptions)]),
    "gms_pool_close": (None, [c_void_p]),
    "gms_pool_allocate": (c_int, [c_void_p, c_uint64, c_uint64, POINTER(Piece)]),
    "gms_pool_free": (c_int, [c_void_p, c_uint64]),
    "gms_pool_trim": (c_int, [c_void_p]),
    "gms_pool_stats": (c_int, [c_void_p, POINTER(PoolStats)]),
    "gms_torch_use": (c_int, [c_void_p]),
    "gms_torch_clear": (c_int, [c_void_p]),
    "gms_torch_alloc": (c_void_p, [c_ssize_t, c_int, c_void_p]),
    "gms_torch_free": (None, [c_void_p, c_ssize_t, c_int, c_void_p]),
    "gms_dtype_name": (c_char_p, [c_uint32]),
    "gms_dtype_find": (c_uint32, [c_char_p]),
    "gms_tensors_put": (c_int, [_G, POINTER(Tensor), c_size_t]),
    "gms_tensors_list": (c_int, [_G, POINTER(TensorList)]),
    "gms_query_tensors": (c_int, [_G, c_char_p, POINTER(TensorList)]),
    "gms_tensors_free": (None, [POINTER(TensorList)]),
    "gms_dlpack": (c_int, [_G, POINTER(Tensor), c_int, POINTER(c_void_p)]),
    "gms_checkpoint_open": (c_int, [POINTER(c_void_p), POINTER(c_char_p), c_size_t]),
    "gms_checkpoint_close": (None, [c_void_p]),
    "gms_checkpoint_load": (c_int, [c_void_p, _G, c_char_p]),
    "gms_checkpoint_verify": (c_int, [c_void_p, _G]),
    "gms_checkpoint_work": (c_int, [c_void_p]),
    "gms_checkpoint_cancel": (None, [c_void_p]),
    "gms_checkpoint_progress": (c_int, [c_void_p, POINTER(Progress)]),
    "gms_checkpoint_finish": (c_int, [c_void_p, c_char_p]),
}


def _load() -> ctypes.CDLL:
    above = pathlib.Path(__file__).resolve().parents
    beside = [above[n] / path for n, path in ((3, "build/libgmsclient.so"), (3, "libgmsclient.so.1")) if len(above) > n]
    found = os.environ.get("GMS_LIBRARY") or next((str(p) for p in beside if p.exists()), "libgmsclient.so.1")
    try:
        library = ctypes.CDLL(found)
        for name, (result, arguments) in _PROTOTYPES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as e:
        raise ImportError(f"gms needs libgmsclient of version {MAJOR}: {e}. Install it (make install), or name it in "
                          "$GMS_LIBRARY") from e
    version = library.gms_version().decode()
    if version.split(".")[0] != MAJOR:
        raise ImportError(f"gms needs libgmsclient of version {MAJOR}, and {found} is {version}")
    return library


lib = _load()
version: str = lib.gms_version().decode()
path: str = lib._name


def check(result: int) -> int:
    """The result of a call, or its failure as an Error. In the thread that made the call."""
    if result < 0:
        raise Error(-result, lib.gms_last_error().decode(errors="replace"))
    return result


def text(value: str | None) -> bytes | None:
    return None if value is None else terminated(value.encode())


def terminated(data: bytes) -> bytes:
    """As C wants it: what has a NUL inside would be cut there."""
    if b"\0" in data:
        raise ValueError(f"{data!r} has a NUL character, which no text here can have")
    return data


def milliseconds(deadline: float | None) -> int:
    """A deadline in seconds, None for ever, as the library wants it."""
    return FOREVER if deadline is None or deadline == math.inf else max(0, min(round(deadline * 1000), FOREVER - 1))


# ---- DLPack capsules. Those made here never leave the function that makes them, so they need no destructor.

_PYTHON = ctypes.pythonapi
new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, c_void_p, c_char_p, c_void_p)(("PyCapsule_New", _PYTHON))
capsule_is_valid = ctypes.PYFUNCTYPE(c_int, ctypes.py_object, c_char_p)(("PyCapsule_IsValid", _PYTHON))
_DELETER_AT = 56  # in a DLManagedTensor: behind the DLTensor of 48 bytes and the manager's pointer


def delete_managed(managed: int) -> None:
    ctypes.cast(c_void_p.from_address(managed + _DELETER_AT), CFUNCTYPE(None, c_void_p))(managed)
