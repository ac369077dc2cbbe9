# SPDX-License-Identifier: MIT
"""
A layout's manifest, and its entries as torch tensors over the mapped memory: no copy, by DLPack.

A type that DLPack or some torch versions do not have travels as an integer of the same width and is viewed as what it is.
"""
from __future__ import annotations

import contextlib
import errno
import math
from ctypes import byref, c_int64, c_void_p
from typing import TYPE_CHECKING, Callable, Iterator, NamedTuple

from ._library import (PARAMETER, Error, Tensor, TensorList, capsule_is_valid, check, delete_managed, lib, new_capsule,
                       text)

if TYPE_CHECKING:
    import torch

_U8, _I8, _I16, _I32, _I64 = 2, 3, 5, 7, 9
_F4 = 20
# GMS_DTYPE_*: torch's name, and the type that carries it where that is another one
_TYPES: dict[int, tuple[str, int | None]] = {
    1: ("bool", _U8), 2: ("uint8", None), 3: ("int8", None), 4: ("uint16", _I16), 5: ("int16", None), 6: ("uint32", _I32),
    7: ("int32", None), 8: ("uint64", _I64), 9: ("int64", None), 10: ("float16", None), 11: ("bfloat16", None),
    12: ("float32", None), 13: ("float64", None), 14: ("complex64", None), 15: ("float8_e4m3fn", _U8), 16: ("float8_e5m2", _U8),
    17: ("float8_e8m0fnu", _U8), 18: ("float8_e4m3fnuz", _U8), 19: ("float8_e5m2fnuz", _U8), _F4: ("float4_e2m1fn_x2", _U8),
}


class TensorInfo(NamedTuple):
    """A tensor as the manifest has it. Sizes and offsets are bytes, shapes and strides elements."""
    name: str
    dtype: str              # safetensors' name: "BF16", "F8_E4M3"
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    kind: str               # "parameter" or "buffer"
    slot: int               # of the allocation
    offset: int             # of the first element in it
    bytes: int              # from the first element to the end of the last
    storage: tuple[int, int]  # offset and bytes of the storage that it is a view of
    address: int            # 0 while unmapped


@contextlib.contextmanager
def rows(g: int, store: str | None = None) -> Iterator[list[Tensor]]:
    """The manifest of the session's layout, or of any store's: the library's own structs, valid inside the block."""
    found = TensorList()
    check(lib.gms_tensors_list(g, byref(found)) if store is None else lib.gms_query_tensors(g, text(store), byref(found)))
    try:
        step = Tensor.from_address(found.tensors).size if found.n else 0
        yield [Tensor.from_address(found.tensors + i * step) for i in range(found.n)]
    finally:
        lib.gms_tensors_free(byref(found))


def info(row: Tensor) -> TensorInfo:
    return TensorInfo(row.name.decode(), lib.gms_dtype_name(row.dtype).decode(), tuple(row.shape[:row.rank]),
                      tuple(row.strides[:row.rank]), "parameter" if row.kind == PARAMETER else "buffer", row.slot, row.offset,
                      row.bytes, (row.storage_offset, row.storage_bytes), row.address)


def torch_dtype(code: int) -> torch.dtype | None:
    """None: this torch has no such type."""
    import torch
    return getattr(torch, _TYPES[code][0], None) if code in _TYPES else None


def gms_dtype(dtype: torch.dtype) -> int | None:
    """None: safetensors has no such type."""
    name = str(dtype).split(".")[1]
    return next((code for code, (known, _) in _TYPES.items() if known == name), None)


def torch_shape(row: Tensor) -> tuple[int, ...]:
    """The shape that torch gives it: four-bit floats come in pairs there."""
    shape = tuple(row.shape[:row.rank])
    return shape[:-1] + (shape[-1] // 2,) if row.dtype == _F4 and shape else shape


def gms_shape(dtype: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:-1] + (shape[-1] * 2,) if dtype == _F4 and shape else shape


def exporter(g: int) -> Callable[[Tensor], torch.Tensor]:
    """
    What makes a torch tensor of a row. The tensor keeps the handle's mappings and lock until it and its views are gone.
    """
    from torch.utils.dlpack import from_dlpack

    plain = {code for code, (_, carrier) in _TYPES.items() if carrier is None}
    managed = c_void_p()
    dlpack, at = lib.gms_dlpack, byref(managed)

    def export(row: Tensor) -> torch.Tensor:
        if row.dtype not in plain:
            carrier, dtype = _carried(row)
            return export(carrier).view(dtype)
        check(dlpack(g, byref(row), 0, at))
        capsule = new_capsule(managed.value, b"dltensor", None)
        try:
            return from_dlpack(capsule)
        finally:
            if capsule_is_valid(capsule, b"dltensor"):  # nobody took it
                delete_managed(managed.value or 0)

    return export


def _carried(row: Tensor) -> tuple[Tensor, torch.dtype]:
    """The same row in its carrier type, and what that is to be viewed as."""
    import torch
    dtype, shape = torch_dtype(row.dtype), tuple(row.shape[:row.rank])
    if dtype is None or (row.dtype == _F4 and (not shape or shape[-1] % 2)):
        name = lib.gms_dtype_name(row.dtype).decode()
        raise Error(errno.EOPNOTSUPP, f"{row.name.decode()} is {list(shape)} of {name}, and torch {torch.__version__} has no "
                                      "such type; ask for other tensors by prefix")
    carrier = Tensor.from_buffer_copy(row)
    carrier.dtype = _TYPES[row.dtype][1]
    if row.dtype == _F4:
        shape = torch_shape(row)
        carrier.shape = (c_int64 * row.rank)(*shape)
        carrier.strides = (c_int64 * row.rank)(*(math.prod(shape[i + 1:]) for i in range(row.rank)))
    return carrier, dtype


def raw(g: int, slot: int, offset: int, size: int) -> torch.Tensor:
    """`size` bytes of a mapped allocation, as a flat uint8 tensor."""
    row = Tensor(dtype=_U8, rank=1, name=b"bytes", shape=(c_int64 * 1)(size), strides=(c_int64 * 1)(1), slot=slot, offset=offset,
                 bytes=size, storage_offset=offset, storage_bytes=size)
    return exporter(g)(row)


def place(row: Tensor) -> tuple[int, int, int, tuple[int, ...], tuple[int, ...]]:
    """Equal for names of one tensor: tied weights."""
    return row.slot, row.offset, row.dtype, tuple(row.shape[:row.rank]), tuple(row.strides[:row.rank])


def all_tensors(g: int, prefix: str = "") -> dict[str, torch.Tensor]:
    """All whose names begin with `prefix`. Names of one tensor have one object."""
    export, start = exporter(g), prefix.encode()
    result: dict[str, torch.Tensor] = {}
    first: dict[int, tuple[Tensor, torch.Tensor]] = {}  # at an address
    with rows(g) as found:
        for row in found:
            name = row.name
            if not name.startswith(start):
                continue
            known = first.get(row.address)
            if known is not None and place(known[0]) == place(row):
                tensor = known[1]
            else:
                tensor = export(row)
                first.setdefault(row.address, (row, tensor))
            result[name.decode()] = tensor
    return result
