"""Other people's quantized checkpoints: one file per ``quant_method`` of a config.json."""

from ...core.registry import Registry

SCHEMES = Registry("pagoda.weights.schemes", "quantization method of a checkpoint", "SCHEME")
