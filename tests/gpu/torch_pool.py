# SPDX-License-Identifier: MIT
"""
PyTorch allocates in a store: a model trained inside gms.pool(), published where it lies, attached by another process with
equal outputs, and nothing left behind.
"""
import signal
import time
import warnings

import torch_gpu
from torch_gpu import Child, expect, in_child, ms, owned, row, settled, used

import gms
import torch
from torch import nn

STORE = "cuda:0/trained"
MIB = 1 << 20


class Model(nn.Module):
    def __init__(self, width=1024, depth=4):
        super().__init__()
        self.embed = nn.Embedding(4096, width)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(width, 8, 4 * width, 0.0, batch_first=True) for _ in range(depth))
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 4096, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x.transpose(1, 2)).transpose(1, 2))


def ids():
    return (torch.arange(4 * 64, device="cuda") * 7 % 4096).view(4, 64)


def outputs(model):
    with torch.inference_mode():
        return model.eval()(ids()).cpu()


def train(child):
    facts = {}
    torch.manual_seed(1)
    with gms.pool(STORE) as pool:
        model = Model().cuda()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        losses = []
        for _ in range(10):
            optimizer.zero_grad(set_to_none=True)
            loss = nn.functional.cross_entropy(model(ids()).flatten(0, 1), (ids() * 31 + 5).flatten() % 4096)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        facts["losses"] = losses[0], losses[-1]
        facts["training"] = pool.stats()
        del optimizer, loss
        for p in model.parameters():
            p.grad = None
        torch.cuda.empty_cache()
        facts["bytes"] = sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
        before = {n: p.data_ptr() for n, p in model.named_parameters()}
        begin = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # nothing but the model is left
            session = pool.publish(model, "trained@10")
        facts["publish"] = time.perf_counter() - begin
    tensors = session.tensors()
    facts["in place"] = all(tensors[n].data_ptr() == p.data_ptr() == before[n] for n, p in model.named_parameters())
    facts["store"] = session.state().bytes
    facts["grad"] = any(p.requires_grad for p in model.parameters())
    model.train()(ids())  # writes to buffers, which are its own again
    model.load_state_dict({n: b for n, b in tensors.items() if "running" in n or "num_batches" in n}, strict=False)
    facts["outputs"] = outputs(model)
    del tensors
    session.close()
    facts["after close"] = torch.equal(outputs(model), facts["outputs"])  # torch has the memory still
    child.send(facts)
    signal.pause()


def attach(expected):
    with gms.parameters_on_meta():
        model = Model()
    session = gms.attach(STORE, identity="trained@10", deadline=10)
    session.into(model)
    return torch.equal(outputs(model), expected), model.head.weight is model.embed.weight


def fail():
    try:
        with gms.pool(STORE, mode="update"):
            x = torch.ones(64 * MIB, device="cuda")
            inside = owned()
            raise KeyError
    except KeyError:
        value = x[0].item()  # it is there as long as somebody has it
        held = used()
        del x
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return inside, value, held - used()


def give_back():
    """A model that is dropped after its session: the memory goes with the last tensor."""
    with gms.pool("cuda:0/dropped"):
        x = torch.ones(256 * MIB, device="cuda")  # 1 GiB
        y = torch.ones(MIB, device="cuda")
        z = (y.view(1024, 1024) @ y.view(1024, 1024)).sum()  # cuBLAS makes its workspace in here
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gms.publish({"x": x}).close()
    warned = [str(w.message) for w in caught if "not published" in str(w.message)]
    del y, z
    torch_gpu.gmsctl("clear", "cuda:0/dropped", "--force")
    before = used()
    del x
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return before - used(), warned


def main():
    torch_gpu.start()
    print(f"torch {torch.__version__}: trained inside a store")
    base = used()
    trainer = Child(train, 120)
    facts = trainer.receive()
    stats = facts["training"]
    expect(facts["losses"][1] < facts["losses"][0], "loss in ten steps", "{:.3f} to {:.3f}".format(*facts["losses"]))
    expect(stats.requested > facts["bytes"], "slabs while training",
           f"{stats.slabs} of {stats.reserved // MIB} MiB, {stats.requested // MIB} MiB in {stats.pieces} segments")
    row("fragmentation of slabs, internal and external",
        f"{stats.internal_fragmentation:.3f}, {stats.external_fragmentation:.3f}")
    expect(facts["in place"], "parameters are published where they lie", ms(facts["publish"]))
    row("published, of which the model", f"{facts['store'] // MIB} MiB, {facts['bytes'] // MIB} MiB")
    expect(not facts["grad"], "published parameters ask for no gradients")
    expect(facts["after close"], "the model outlives its session")
    for name in ("beside the publisher", "after its death"):
        same, tied = in_child(attach, facts["outputs"])
        expect(same and tied, f"attached {name}: outputs equal, bit for bit, and tied")
        if name == "beside the publisher":
            trainer.kill()
    before = owned()
    inside, value, returned = in_child(fail)
    expect(inside - before >= 256 * MIB and value == 1, "an exception in a pool: what was allocated",
           f"{(inside - before) // MIB} MiB")
    expect(returned >= 256, "and what was given back in the same process", f"{returned} MiB")
    expect(owned() == before and in_child(attach, facts["outputs"])[0], "what was published before is there still")
    returned, warned = in_child(give_back)
    expect(len(warned) == 1 and warned[0].startswith("2 tensors"), "what lives in a pool and is not published is warned of")
    expect(returned >= 1000, "dropping a published tensor of a cleared store gives back", f"{returned} MiB")
    torch_gpu.gmsctl("clear", STORE)
    after = settled(base, 32)
    expect(owned() == 0 and abs(after - base) <= 32, "left behind", f"{owned()} bytes in stores, {after - base} MiB on the GPU")
    torch_gpu.finish()


main()
