# SPDX-License-Identifier: MIT
"""The module that producer.py and consumer.py share: a small language model with tied weights."""
import torch
from torch import nn


class Model(nn.Module):
    def __init__(self, words=1000, width=128, depth=4):
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True) for _ in range(depth))
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("positions", torch.sin(torch.arange(512.0)[:, None] / torch.arange(1, width + 1)), persistent=False)

    def forward(self, ids):
        x = self.embed(ids) + self.positions[:ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(x)
