"""The models that are measured: published shapes, random weights, and the arithmetic of what they read and compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """A dense decoder with grouped-query attention, gated MLP and tied embeddings."""

    name: str
    model_type: str
    architecture: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    rope_theta: float
    norm_eps: float
    max_positions: int
    qkv_bias: bool = False

    def config(self) -> dict[str, Any]:
        """``config.json`` as the hub has it."""
        return {
            "architectures": [self.architecture], "model_type": self.model_type, "hidden_size": self.hidden,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim, "intermediate_size": self.intermediate, "vocab_size": self.vocab,
            "rope_theta": self.rope_theta, "rms_norm_eps": self.norm_eps, "hidden_act": "silu", "use_cache": True,
            "max_position_embeddings": self.max_positions, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
            "bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.02,
        }  # fmt: skip

    @property
    def layer_params(self) -> int:
        """Elements of the matrices of all layers."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head_params(self) -> int:
        """Elements of the output matrix, which is the embedding too."""
        return self.vocab * self.hidden

    def linear_flops(self, tokens: int, sampled: int) -> int:
        """Of one pass over ``tokens`` tokens that wants logits of ``sampled`` of them."""
        return 2 * (tokens * self.layer_params + sampled * self.head_params)

    def attention_flops(self, pairs: int) -> int:
        """``pairs``: (query, key) pairs, one layer, one head: a dot product and a weighted sum each."""
        return 4 * self.layers * self.heads * self.head_dim * pairs

    def kv_bytes(self, tokens: int, bits: int) -> int:
        """K and V of ``tokens`` tokens in all layers."""
        return self.layers * 2 * self.kv_heads * self.head_dim * tokens * bits // 8


SHAPES = {
    shape.name: shape
    for shape in (
        Shape(
            "qwen05b", "qwen2", "Qwen2ForCausalLM", 896, 24, 14, 2, 64, 4864, 151936, 1e6, 1e-6, 32768, qkv_bias=True
        ),
        Shape("llama1b", "llama", "LlamaForCausalLM", 2048, 16, 32, 8, 64, 8192, 128256, 5e5, 1e-5, 131072),
        # The published 15M stories model has 256 positions; more of them here, so that long contexts run too.
        Shape("stories15m", "llama", "LlamaForCausalLM", 288, 6, 6, 6, 48, 768, 32000, 1e4, 1e-5, 16384),
    )
}
