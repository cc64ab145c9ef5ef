"""A random start in which induction heads are sketched.

Recall needs two attention layers composed: one that notes at each token what came just before it, one that looks for
places noted with what is here now. From a plain random start neither had formed after three million tokens (RoPE heads
without biases have nothing constant to hold a fixed offset with). So the start is arranged, and training refines it:

    residual   [0, 128) token embedding | [128, 240) notes: token 1, 2, 3, 4 back, 28 each | [240, 256) constant
    layer 0    head d-1: rotates the constant so that its score is a sum of cos(f_i * (distance - d)); writes note d
    layer 1    head 0: here is note 1 there; head 2: note 1 here is note 2 there; both copy the token they find
    layer 2    head 0: note 2 here is note 3 there; head 2: note 3 here is note 4 there; likewise

Everything else is random, and outputs into the residual stream that are not planted start at zero.
"""

from __future__ import annotations

import torch
from torch import nn

EMBED, NOTE, CONSTANT = 128, 28, 16  # parts of the residual stream, see above
STD = 0.5
FAST_PAIRS = 8  # hold an offset
OFFSET_SCALE, MATCH_SCALE = 6.0, 2.2


@torch.no_grad()
def initialise(model: nn.Module) -> None:
    s = model.shape
    if s.hidden != EMBED + 4 * NOTE + CONSTANT or s.heads != 4 or s.kv_heads != 2:
        raise ValueError("the planted start is drawn for hidden 256, 4 heads and 2 kv heads")
    dim, half = s.head_dim, s.head_dim // 2
    weight = model.embed.weight
    weight.zero_()
    weight[:, :EMBED] = torch.randn(s.vocab_size, EMBED) * STD
    weight[:, -CONSTANT:] = STD * (EMBED / CONSTANT) ** 0.5
    model.norm.fill_(0.08)  # logits of a tied head: 128 products of 0.5, to be kept near 5
    for block in model.blocks:
        for name, p in block.named_parameters():
            if p.ndim == 2:
                nn.init.zeros_(p) if name.startswith(("o_proj", "down_proj")) else nn.init.normal_(p, std=0.06)

    look = nn.init.orthogonal_(torch.empty(EMBED, EMBED))
    key_map = look[:NOTE]  # what a note keeps of a token
    copies = look[EMBED - dim :]  # what an induction head copies of the token it found
    notes = [slice(EMBED + NOTE * i, EMBED + NOTE * (i + 1)) for i in range(4)]
    slow = torch.cat([torch.arange(half - NOTE // 2, half), torch.arange(dim - NOTE // 2, dim)])

    def read(source: slice | None, scale: float) -> torch.Tensor:
        """[dim, hidden] rows that put a note (None: the token itself, as notes keep it) into the slow pairs."""
        rows = torch.randn(dim, s.hidden) * 0.003
        if source is None:
            rows[slow, :EMBED] = key_map * scale
        else:
            rows[slow, source] = torch.eye(NOTE) * scale
        return rows

    first = model.blocks[0]
    freqs = s.rope_theta ** (-torch.arange(half) / half)
    fast = torch.arange(FAST_PAIRS)
    row = OFFSET_SCALE / (CONSTANT * (EMBED / CONSTANT) ** 0.5)
    for head in range(4):
        q = first.q_proj.weight[head * dim : (head + 1) * dim].mul_(0.05)
        angles = freqs[fast] * (head + 1)
        q[fast, -CONSTANT:] = (angles.cos() * row)[:, None]
        q[fast + half, -CONSTANT:] = (-angles.sin() * row)[:, None]
        first.o_proj.weight[notes[head], head * dim : head * dim + NOTE] = torch.eye(NOTE) * STD
    for kv in range(2):
        k = first.k_proj.weight[kv * dim : (kv + 1) * dim].mul_(0.05)
        k[fast, -CONSTANT:] = row
        first.v_proj.weight[kv * dim : kv * dim + NOTE] = 0.0
        first.v_proj.weight[kv * dim : kv * dim + NOTE, :EMBED] = key_map

    # (layer, head): note read here (None: this token), note looked for there.
    matches = {(1, 0): (None, 0), (1, 2): (0, 1), (2, 0): (1, 2), (2, 2): (2, 3)}
    for (layer, head), (here, there) in matches.items():
        block, kv = model.blocks[layer], head // 2
        block.q_proj.weight[head * dim : (head + 1) * dim] = read(None if here is None else notes[here], MATCH_SCALE)
        block.k_proj.weight[kv * dim : (kv + 1) * dim] = read(notes[there], MATCH_SCALE)
        block.v_proj.weight[kv * dim : (kv + 1) * dim] *= 0.05
        block.v_proj.weight[kv * dim : (kv + 1) * dim, :EMBED] += copies
        block.o_proj.weight[:EMBED, head * dim : (head + 1) * dim] = copies.T * STD
