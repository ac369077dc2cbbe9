# SPDX-License-Identifier: MIT
"""
A transformers model of 1.2 billion parameters, saved to model files, loaded by gmsctl, and attached by processes that come
and are killed: the same logits, bit for bit, as the model loaded the ordinary way.
"""
import os
import signal
import statistics
import tempfile
import time

os.environ["HF_HUB_OFFLINE"] = "1"

import torch_gpu  # noqa: E402
from torch_gpu import Child, expect, gmsctl, ms, row, used  # noqa: E402

import gms  # noqa: E402
import torch  # noqa: E402
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM  # noqa: E402, F401: imported before any fork

STORE = "cuda:0/model"
CONFIG = LlamaConfig(vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
                     num_key_value_heads=8, max_position_embeddings=4096, tie_word_embeddings=True)


def ids():
    return torch.arange(5, 517, device="cuda")[None]


def logits(model):
    with torch.inference_mode():
        return model(ids()).logits.cpu()


def make(folder):
    torch.manual_seed(1)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(CONFIG, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="800MB")
    return sum(p.numel() for p in model.parameters())


def ordinary(folder):
    begin = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).cuda().eval()
    result = logits(model)
    return result, time.perf_counter() - begin


def attached(child, expected):
    """A process's life: from its imports to its first logits; then it waits to be killed."""
    times = [time.perf_counter()]
    torch.cuda.init()
    torch.empty(1, device="cuda")
    times.append(time.perf_counter())
    with gms.parameters_on_meta():
        model = AutoModelForCausalLM.from_config(CONFIG, dtype=torch.bfloat16).eval()
    times.append(time.perf_counter())
    session = gms.attach(STORE, deadline=10)
    times.append(time.perf_counter())
    session.into(model)
    times.append(time.perf_counter())
    result = logits(model)
    times.append(time.perf_counter())
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    reserved = torch.cuda.memory_reserved() >> 20
    child.send((torch.equal(result, expected), tied, reserved, [b - a for a, b in zip(times, times[1:])]))
    signal.pause()


def nothing_attached(child):
    """What a process costs that computes as much with no weights of its own."""
    x = torch.ones(512, 2048, device="cuda", dtype=torch.bfloat16)
    torch.nn.functional.scaled_dot_product_attention(*[(x @ x.t())[None, None]] * 3)
    torch.cuda.synchronize()
    child.send(torch.cuda.memory_reserved() >> 20)
    signal.pause()


def main():
    torch_gpu.start()
    print(f"torch {torch.__version__}, a model of {CONFIG.num_hidden_layers} layers")
    with tempfile.TemporaryDirectory() as folder:
        parameters = Child(lambda child: make(folder), 120).result()
        size = sum(os.path.getsize(os.path.join(folder, f)) for f in os.listdir(folder) if f.endswith(".safetensors"))
        shards = sum(f.endswith(".safetensors") for f in os.listdir(folder))
        expect(parameters >= 1.2e9 and shards > 2, "parameters",
               f"{parameters / 1e9:.2f} billion, {size >> 20} MiB in {shards} files")
        expected, seconds = Child(lambda child: ordinary(folder), 120).result()
        row("from_pretrained, to the first logits", ms(seconds))

        empty = used()
        _, seconds = gmsctl("load", STORE, folder)
        row("gmsctl load", f"{ms(seconds)}, {size / seconds / 1e9:.1f} GB/s with the start of everything")
        _, seconds = gmsctl("verify", STORE, folder)
        row("gmsctl verify", ms(seconds))
    base = used()
    row("memory that the weights take", f"{base - empty} MiB")

    lives, equal, ties = [], True, True
    for _ in range(20):
        child = Child(lambda child: attached(child, expected))
        same, tied, _, times = child.receive()
        equal, ties = equal and same, ties and tied
        lives.append(times)
        expect(child.kill() == signal.SIGKILL, "killed") if len(lives) == 1 else child.kill()
    expect(equal, "logits equal, bit for bit, in 20 restarts after SIGKILL")
    expect(ties, "tied weights are one Parameter")
    for name, i in [("CUDA context", 0), ("module on meta", 1), ("gms.attach", 2), ("into(module)", 3), ("first logits", 4)]:
        column = [t[i] for t in lives]
        row(f"  {name}: median, worst", f"{ms(statistics.median(column))}, {ms(max(column))}")
    row("  imports done to first logits: median", ms(statistics.median(map(sum, lives))))
    after = torch_gpu.settled(base, 64)
    expect(abs(after - base) <= 64, "memory after the last death, over that before the first", f"{after - base} MiB")

    one = Child(nothing_attached)
    reserved = one.receive()
    context = used() - base - reserved
    one.kill()
    torch_gpu.settled(base, 64)
    children = [Child(lambda child: attached(child, expected)) for _ in range(4)]
    answers = [child.receive() for child in children]
    expect(all(same for same, *_ in answers), "four at once: logits equal")
    extra = used() - base - sum(r for _, _, r, _ in answers) - 4 * context
    expect(extra <= (base - empty) // 2, "four at once: memory over contexts and torch's own",
           f"{extra} MiB (context {context} MiB, weights {base - empty} MiB once)")
    for child in children:
        child.kill()
    gmsctl("clear", STORE)
    torch_gpu.finish()


main()
