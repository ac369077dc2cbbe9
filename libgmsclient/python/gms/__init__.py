# SPDX-License-Identifier: MIT
"""
GPU memory that outlives its processes, for PyTorch. The service is gmsd; a store ("cuda:0/weights") is what it keeps.

    gms.load("cuda:0/weights", "model/")                  # safetensors files into a store, by any process, once
    session = gms.attach("cuda:0/weights")                # in every process, in milliseconds and without a copy
    session.tensors()["model.embed_tokens.weight"]        # torch tensors over the shared memory

    with gms.parameters_on_meta():                        # a module without weights of its own
        model = build()
    session.into(model)

    with gms.pool("cuda:0/weights"):                      # what is allocated inside lies in the store
        model = build().cuda()
    gms.publish(model, identity="model@1")

What is attached is read-only: a write to it is a SIGSEGV on a host store and costs the CUDA context on a GPU. Errors are
gms.Error with an errno and a sentence. Without torch attach(), load(), verify() and all that is no tensor work too.
"""
from ._library import Error, version
from .checkpoint import Progress, load, verify
from .modules import parameters_on_meta
from .pool import Pool, PoolStats, pool, publish
from .session import Event, Session, State, attach, manifest
from .tensors import TensorInfo

__version__ = version

__all__ = ["Error", "Event", "Pool", "PoolStats", "Progress", "Session", "State", "TensorInfo", "attach", "load", "manifest",
           "parameters_on_meta", "pool", "publish", "verify"]
