# SPDX-License-Identifier: MIT
"""Modules: built without memory for their parameters, and given those of a store."""
from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Iterable, Iterator, TypeVar

from ._devices import torch_device
from ._library import Tensor
from .tensors import exporter, rows, torch_dtype, torch_shape

if TYPE_CHECKING:
    import torch
    Module = TypeVar("Module", bound=torch.nn.Module)


@contextlib.contextmanager
def parameters_on_meta() -> Iterator[None]:
    """
    Modules that this thread builds inside have their parameters on the meta device (shapes and dtypes, no memory), and
    their buffers for real: what a module computes at its construction and no checkpoint has (the frequencies of a rotary
    embedding) is right. Ties are kept. What Session.into() wants.
    """
    import torch
    from torch.nn.modules.module import register_module_parameter_registration_hook
    from torch.utils.weak import WeakIdKeyDictionary

    thread, made = threading.get_ident(), WeakIdKeyDictionary()

    def to_meta(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter) -> torch.nn.Parameter | None:
        if threading.get_ident() != thread or parameter is None or parameter.is_meta or torch.nn.parameter.is_lazy(parameter):
            return None
        meta: torch.nn.Parameter | None = made.get(parameter)  # type: ignore[no-untyped-call]
        if meta is None:
            meta = made[parameter] = torch.nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
            meta.__dict__.update(parameter.__dict__)
        return meta

    hook = register_module_parameter_registration_hook(to_meta)  # type: ignore[arg-type]
    try:
        yield
    finally:
        hook.remove()


def fill(g: int, module: Module, uuid: str, strict: bool, prefix: str) -> Module:
    """Session.into(), which see."""
    import torch
    from ._memory import private_copies
    device, export = torch_device(uuid), exporter(g)
    owners = dict(module.named_modules(remove_duplicate=False))
    wrong: list[str] = []
    parameters: list[tuple[list[str], torch.nn.Parameter]] = []
    buffers: list[tuple[list[str], torch.Tensor]] = []
    copied: dict[tuple[int, int], list[tuple[list[str], Tensor]]] = {}  # by storage

    with rows(g) as found:
        store = {row.name.decode(): row for row in found}

        def find(names: list[str], mine: torch.Tensor) -> Tensor | None:
            row = next((store[prefix + n] for n in names if prefix + n in store), None)
            if row is not None and (torch_shape(row) != mine.shape or torch_dtype(row.dtype) != mine.dtype):
                wrong.append(f"{names[0]} is {list(mine.shape)} of {mine.dtype} in the module, and {list(torch_shape(row))} of "
                             f"{torch_dtype(row.dtype)} in the store")
            return row

        for names, mine in _tied(module.named_parameters(remove_duplicate=False)):
            row = find(names, mine)
            if row is None and strict:
                wrong.append(f"parameter {' = '.join(names)} is missing")
            elif row is not None and not wrong:
                parameter = torch.nn.Parameter(export(row), requires_grad=False)
                parameter.__dict__.update(mine.__dict__)
                parameters.append((names, parameter))

        for names, mine in _tied(module.named_buffers(remove_duplicate=False)):
            row = find(names, mine)
            if row is not None:
                copied.setdefault((row.slot, row.storage_offset), []).append((names, row))
            elif strict and any(_leaf(owners, n)[1] not in _leaf(owners, n)[0]._non_persistent_buffers_set for n in names):
                wrong.append(f"buffer {' = '.join(names)} is missing")
            elif mine.is_meta and strict:
                wrong.append(f"buffer {' = '.join(names)} is on the meta device, and is not in the store; build it for real, as "
                             "gms.parameters_on_meta() does")
            elif not mine.is_meta and mine.device != device:
                buffers.append((names, mine.to(device)))

        if wrong:
            raise ValueError(f"the module does not fit what is published: {'; '.join(wrong)}")
        for shared in copied.values():
            buffers += zip([names for names, _ in shared], private_copies([export(row) for _, row in shared]))

    for names, parameter in parameters:
        for owner, leaf in (_leaf(owners, n) for n in names):
            owner._parameters[leaf] = parameter
    for names, tensor in buffers:
        for owner, leaf in (_leaf(owners, n) for n in names):
            owner._buffers[leaf] = tensor
    return module


def _tied(named: Iterable[tuple[str, torch.Tensor]]) -> Iterable[tuple[list[str], torch.Tensor]]:
    """Each tensor once, with all of its names."""
    groups: dict[int, tuple[list[str], torch.Tensor]] = {}
    for name, tensor in named:
        groups.setdefault(id(tensor), ([], tensor))[0].append(name)
    return groups.values()


def _leaf(owners: dict[str, torch.nn.Module], name: str) -> tuple[torch.nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return owners[path], leaf
