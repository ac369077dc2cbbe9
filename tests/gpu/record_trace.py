# SPDX-License-Identifier: MIT
"""
Records what PyTorch's caching allocator asks for and what segments it holds for that, for the benchmark of slabs:

    python3 tests/gpu/record_trace.py OUT        # on a machine with a GPU

The work: a small transformer is trained on sequences of changing length, then generates with a KV cache that grows by
concatenation, for several requests at once. One line an event, in the order of the allocator's own history:

    a SIZE     a block is handed out (bytes, as the allocator rounds them)
    f AGE      a block is free again; AGE counts back from the last `a`, which is 0
    A SIZE     a segment is taken from the driver
    F AGE      a segment is given back; AGE counts back from the last `A`
"""
import random
import sys

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x, cache=None):
        b, t, w = x.shape
        q, k, v = (y.view(b, t, self.heads, -1).transpose(1, 2) for y in self.qkv(self.norm1(x)).split(w, dim=-1))
        if cache is not None:
            if cache:
                k, v = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
            cache[:] = [k, v]
        a = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=t > 1)
        x = x + self.out(a.transpose(1, 2).reshape(b, t, w))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Model(nn.Module):
    def __init__(self, words=16384, width=1024, depth=12, heads=16):
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.head = nn.Linear(width, words, bias=False)

    def forward(self, ids, caches=None):
        x = self.embed(ids)
        for i, block in enumerate(self.blocks):
            x = block(x, caches[i] if caches is not None else None)
        return self.head(x)


def work():
    rng = random.Random(1)
    torch.manual_seed(1)
    model = Model().cuda().bfloat16()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for _ in range(12):
        ids = torch.randint(0, 16384, (rng.choice([2, 4, 8]), rng.randrange(64, 1024)), device="cuda")
        loss = nn.functional.cross_entropy(model(ids)[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    del optimizer, loss
    with torch.no_grad():
        requests = []
        for step in range(160):
            if len(requests) < 8 and step % 4 == 0:
                caches = [[] for _ in model.blocks]
                prompt = torch.randint(0, 16384, (1, rng.randrange(32, 2048)), device="cuda")
                requests.append([caches, model(prompt, caches)[:, -1:].argmax(-1), rng.randrange(16, 64)])
            for r in requests:
                r[1] = model(r[1], r[0])[:, -1:].argmax(-1)
                r[2] -= 1
            requests = [r for r in requests if r[2] > 0]
    torch.cuda.synchronize()


def main(path):
    torch.cuda.init()
    torch.empty(1, device="cuda")
    torch.cuda.memory._record_memory_history(max_entries=10_000_000, context=None, stacks="python")
    work()
    trace = torch.cuda.memory._snapshot()["device_traces"][0]
    blocks, segments, n, lines = {}, {}, {"a": 0, "A": 0}, []
    for event in trace:
        kind = {"alloc": "a", "free_completed": "f", "segment_alloc": "A", "segment_free": "F"}.get(event["action"])
        if kind is None:
            continue
        live = blocks if kind in "af" else segments
        if kind in "aA":
            live[event["addr"]] = n[kind]
            n[kind] += 1
            lines.append(f"{kind} {event['size']}")
        elif event["addr"] in live:
            lines.append(f"{kind} {n['a' if kind == 'f' else 'A'] - 1 - live.pop(event['addr'])}")
    with open(path, "w") as out:
        out.write("\n".join(lines) + "\n")
    print(f"{torch.__version__}, {torch.cuda.get_device_name()}: {len(lines)} events, {n['a']} blocks, {n['A']} segments, "
          f"{torch.cuda.max_memory_reserved() >> 20} MiB reserved, {torch.cuda.max_memory_allocated() >> 20} MiB in use at most")


main(sys.argv[1])
