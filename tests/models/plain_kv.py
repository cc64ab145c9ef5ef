"""A KV view over plain growing tensors, one per layer and sequence."""

import torch


class PlainKV:
    def __init__(self):
        self.store = {}

    def view(self, seqs, counts):
        return _View(self, seqs, counts)


class _View:
    def __init__(self, kv, seqs, counts):
        self.kv, self.seqs, self.counts = kv, seqs, counts

    def attend(self, layer, q, k, v, *, scale, window=0, soft_cap=0.0, sinks=None, alibi_slopes=None):
        out = []
        a = 0
        for s, n in zip(self.seqs, self.counts):
            out.append(
                self.one(
                    (layer, s), q[a : a + n], k[a : a + n], v[a : a + n], scale, window, soft_cap, sinks, alibi_slopes
                )
            )
            a += n
        return torch.cat(out)

    def attend_latent(self, layer, q, latent, *, v_dim, scale):
        return self.attend(layer, q, latent, latent[..., :v_dim], scale=scale)

    def one(self, key, q, k, v, scale, window, soft_cap, sinks, slopes):
        if key in self.kv.store:
            pk, pv = self.kv.store[key]
            k = torch.cat([pk, k])
            v = torch.cat([pv, v])
        self.kv.store[key] = (k, v)
        g = q.shape[1] // k.shape[1]
        k = k.repeat_interleave(g, 1)
        v = v.repeat_interleave(g, 1)
        n, m = q.shape[0], k.shape[0]
        sc = torch.einsum("qhd,khd->hqk", q, k) * scale
        if soft_cap:
            sc = torch.tanh(sc / soft_cap) * soft_cap
        d = torch.arange(m)[None] - torch.arange(m - n, m)[:, None]
        if slopes is not None:
            sc = sc + slopes[:, None, None] * d
        mask = d <= 0
        if window:
            mask &= d > -window
        sc = sc.masked_fill(~mask, float("-inf"))
        if sinks is not None:
            sc = torch.cat([sc, sinks[:, None, None].expand(-1, n, 1)], -1)
        p = sc.softmax(-1)[..., :m]
        return torch.einsum("hqk,khd->qhd", p, v)
