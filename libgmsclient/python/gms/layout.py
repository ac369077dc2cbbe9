# SPDX-License-Identifier: MIT
"""Tensors on their way into a store: what they are, where they lie, and what of them has to be copied there."""
from __future__ import annotations

import bisect
from ctypes import byref, c_char_p, c_int64, c_size_t, c_void_p
from typing import Mapping

import torch

from ._library import BUFFER, PARAMETER, TENSOR_PREFIX, Allocation, Piece, Tensor, check, lib, text
from ._memory import ALIGNMENT, extent, flat, private_copies
from .tensors import gms_dtype, gms_shape, raw, rows


class Entry:
    """A tensor by one of its names, and its place in the store."""

    def __init__(self, name: str, tensor: object, kind: int) -> None:
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} is no tensor: it is a {type(tensor).__name__}")
        if tensor.is_meta or tensor.layout != torch.strided:
            raise TypeError(f"{name} has no memory to publish: it is {tensor.layout} on {tensor.device}")
        dtype = gms_dtype(tensor.dtype)
        if dtype is None:
            raise TypeError(f"{name} is of {tensor.dtype}, for which safetensors has no type")
        self.name, self.kind, self.dtype = text(name), kind, dtype
        self.original = tensor
        self.tensor = tensor.detach().resolve_conj().resolve_neg()
        self.storage = self.tensor.untyped_storage()
        self.base = self.storage.data_ptr() if self.tensor.numel() else 0
        if self.tensor.numel() and not self.base:
            raise TypeError(f"{name} has no memory of its own: it is a {type(tensor).__name__}")
        self.start, self.end = extent(self.tensor)
        self.in_place = False
        self.slot = self.offset = self.storage_offset = self.storage_bytes = 0

    def row(self) -> Tensor:
        shape, rank = gms_shape(self.dtype, tuple(self.tensor.shape)), self.tensor.dim()
        # Torch's strides of what is contiguous may be anything where there is but one element; and pairs have none.
        strides = None if self.tensor.is_contiguous() else (c_int64 * rank)(*self.tensor.stride())
        return Tensor(dtype=self.dtype, kind=self.kind, rank=rank, name=self.name, shape=(c_int64 * rank)(*shape),
                      strides=strides, slot=self.slot, offset=self.offset, storage_offset=self.storage_offset,
                      storage_bytes=self.storage_bytes)


class Layout:
    """What is to be published, of a module or a dict. TypeError: what cannot be, by its name. ValueError: a name cannot be."""

    def __init__(self, what: torch.nn.Module | Mapping[str, torch.Tensor]) -> None:
        self.module = what if isinstance(what, torch.nn.Module) else None
        if isinstance(what, torch.nn.Module):
            self.entries = [Entry(n, p, PARAMETER) for n, p in what.named_parameters(remove_duplicate=False)]
            self.entries += [Entry(n, b, BUFFER) for n, b in what.named_buffers(remove_duplicate=False)]
        else:
            self.entries = [Entry(n, t, PARAMETER) for n, t in what.items()]
        self.pieces: list[int] = []  # addresses of what was copied to
        self._put = False  # entries were, or some of them
        self._own: dict[int, torch.Tensor] = {}  # copies of buffers in place, by the id of what they replace
        self.storages: dict[int, list[Entry]] = {}  # by address; 0: of all that is empty
        for entry in self.entries:
            self.storages.setdefault(entry.base, []).append(entry)
        self._bases = sorted(self.storages)

    def has(self, address: int, size: int) -> bool:
        """Whether a storage of it begins in this range."""
        at = bisect.bisect_left(self._bases, address)
        return at < len(self._bases) and self._bases[at] < address + size

    def _range(self, shared: list[Entry]) -> tuple[int, int]:
        """The part of a storage that is named, from an aligned address on, as in the storage."""
        base = shared[0].base
        start = base + (min(e.start for e in shared) - base) // ALIGNMENT * ALIGNMENT
        return start, max(max(e.end for e in shared), start + 1)

    @property
    def bytes(self) -> int:
        """What a store needs for it when nothing lies there yet."""
        ranges = map(self._range, self.storages.values())
        return sum((end - start + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT for start, end in ranges)

    def place(self, g: int, pool: c_void_p) -> None:
        """Finds what lies in the handle's allocations, and copies the rest into pieces of the pool."""
        n = c_size_t()
        check(lib.gms_allocations(g, None, 0, byref(n)))
        slabs = (Allocation * max(1, n.value))(Allocation())
        check(lib.gms_allocations(g, slabs, n.value, byref(n)))
        mapped = sorted((s.address, s.aligned, s.slot) for s in slabs if s.address)

        for base, shared in self.storages.items():
            at = bisect.bisect_right(mapped, (base, 2**64, 0)) - 1
            if base and at >= 0 and base < mapped[at][0] + mapped[at][1]:
                address, _, slot = mapped[at]
                for e in shared:
                    e.in_place, e.slot, e.offset = True, slot, e.start - address
                    e.storage_offset, e.storage_bytes = base - address, e.storage.nbytes()
            else:
                self._copy(g, pool, shared)

    def _copy(self, g: int, pool: c_void_p, shared: list[Entry]) -> None:
        start, end = self._range(shared)
        piece = Piece()
        check(lib.gms_pool_allocate(pool, end - start, 0, byref(piece)))
        self.pieces.append(piece.address)
        memory = raw(g, piece.slot, piece.offset, end - start)
        for a, b, e in {(e.start, e.end): (e.start, e.end, e) for e in shared}.values():
            memory[a - start:b - start].copy_(flat(e.tensor))
        for e in shared:
            e.slot, e.offset = piece.slot, piece.offset + e.start - start
            e.storage_offset, e.storage_bytes = piece.offset, end - start

    def give_back(self, g: int, pool: c_void_p) -> None:
        """After a failure: the entries that put() made, and what place() took."""
        if self._put:
            with rows(g) as found:
                keys = [TENSOR_PREFIX + row.name for row in found]
                check(lib.gms_metadata_delete(g, (c_char_p * len(keys))(*keys), len(keys)))
        for address in self.pieces:
            lib.gms_pool_free(pool, address)

    def put(self, g: int) -> None:
        entries = [e.row() for e in self.entries]
        self._put = True
        check(lib.gms_tensors_put(g, (Tensor * len(entries))(*entries), len(entries)))

    def copy_buffers(self) -> None:
        """Makes what settle() gives the module; before publishing, as there may be no room for it."""
        for shared in self.storages.values():
            buffers = [e for e in shared if e.in_place and e.kind == BUFFER]
            if self.module is not None and buffers:
                self._own.update(zip((id(e.original) for e in buffers), private_copies([e.tensor for e in buffers])))

    def settle(self) -> None:
        """After publishing: a module's tensors in place are read-only. No gradients for them, and buffers are its own again."""
        if self.module is None:
            return
        for e in self.entries:
            if e.in_place and e.kind == PARAMETER:
                e.original.requires_grad_(False)
        for owner in self.module.modules():
            for name, buffer in owner._buffers.items():
                if id(buffer) in self._own:
                    owner._buffers[name] = self._own[id(buffer)]
