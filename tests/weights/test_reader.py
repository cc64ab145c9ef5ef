from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from pagoda.core.errors import WeightsError
from pagoda.weights.header import DTYPE_SIZES, read_header
from pagoda.weights.reader import AHEAD_BYTES, RING_BYTES, Checkpoint, torch_dtype

from .checkpoints import TENSORS, f32, raw, sharded, single


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize("make", [single, sharded])
def test_every_tensor_comes_back(tmp_path: Path, make: object) -> None:
    make(tmp_path)  # type: ignore[operator]
    checkpoint = Checkpoint.open(tmp_path)
    same({name: tensor.clone() for name, tensor in checkpoint.stream()}, TENSORS)
    same({name: checkpoint.read(name) for name in checkpoint.entries}, TENSORS)
    assert checkpoint.num_bytes == 12 * 4 + 6 * 2 + 2
    assert checkpoint.largest_bytes == 48


@pytest.mark.parametrize("dtype", DTYPE_SIZES)
def test_every_dtype(tmp_path: Path, dtype: str) -> None:
    tensor = torch.arange(8).reshape(2, 4).to(torch_dtype(dtype))
    save_file({"x": tensor}, tmp_path / "weights.safetensors")
    entry = Checkpoint.open(tmp_path).entries["x"]
    assert (entry.dtype, entry.shape, entry.num_bytes) == (dtype, (2, 4), 8 * DTYPE_SIZES[dtype])
    found = Checkpoint.open(tmp_path).read("x")
    assert found.dtype == tensor.dtype
    assert torch.equal(found.to(torch.float64), tensor.to(torch.float64))


def test_a_tensor_outside_the_index_is_not_part_of_the_model(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    listed = json.loads(index.read_text())
    del listed["weight_map"]["c.scale"]
    index.write_text(json.dumps(listed))
    assert set(Checkpoint.open(tmp_path).entries) == set(TENSORS) - {"c.scale"}


GOOD = {"x": f32(0, 8, 2)}
DAMAGED = {
    "empty header": (b"", None, b"", "not valid JSON"),
    "not json": (b"{", None, b"", "not valid JSON"),
    "not an object": ([1], None, b"", "not a JSON object"),
    "huge header": (b"{}", 1 << 62, b"", "its header claims"),
    "header longer than the file": (b"{}", 3, b"", "its header claims"),
    "missing key": ({"x": {"dtype": "F32", "shape": [1]}}, None, b"", "tensor 'x' needs dtype"),
    "unknown dtype": ({"x": f32(0, 8, 2) | {"dtype": "F7"}}, None, bytes(8), "tensor 'x': unknown dtype 'F7'"),
    "dtype of another type": ({"x": f32(0, 8, 2) | {"dtype": ["F7"]}}, None, bytes(8), "tensor 'x'"),
    "negative shape": ({"x": f32(0, 8, -2, -1)}, None, bytes(8), "whole numbers"),
    "offsets backwards": ({"x": f32(8, 0, 2)}, None, bytes(8), "data_offsets give -8"),
    "bytes do not match": ({"x": f32(0, 4, 2)}, None, bytes(8), "takes 8 bytes, data_offsets give 4"),
    "truncated": (GOOD, None, bytes(5), "tensor 'x' ends 3 bytes after the end of the file"),
    "overlap": ({"x": f32(0, 8, 2), "y": f32(4, 12, 2)}, None, bytes(12), "'x' and 'y' overlap"),
    "twice": (b'{"x":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"x":{}}', None, bytes(4), "'x' stands"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_named(tmp_path: Path, name: str) -> None:
    header, num_bytes, data, words = DAMAGED[name]
    file = raw(tmp_path, header, data, num_bytes)
    with pytest.raises(WeightsError, match=words) as caught:
        Checkpoint.open(tmp_path)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 400))
def test_random_damage_never_escapes(tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int) -> None:
    folder = tmp_path_factory.mktemp("noise")
    content = bytearray(single(folder).read_bytes())
    content[at : at + len(noise)] = noise
    (folder / "model.safetensors").write_bytes(content)
    with contextlib.suppress(WeightsError):  # noise that happens to fit is weights like any other
        for _ in Checkpoint.open(folder).stream():
            pass


def test_files_that_are_not_weights(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no weights; expected model.safetensors"):
        Checkpoint.open(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(WeightsError, match="a pickle .* convert it to safetensors"):
        Checkpoint.open(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"xyz")
    with pytest.raises(WeightsError, match="truncated .3 bytes"):
        Checkpoint.open(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(WeightsError, match="git-lfs pointer"):
        Checkpoint.open(tmp_path)


def test_shards_that_do_not_fit(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    good = json.loads(index.read_text())
    index.write_text(json.dumps({"weight_map": good["weight_map"] | {"e": "model-1.safetensors"}}))
    with pytest.raises(WeightsError, match=r"'e' should be in model-1\.safetensors, which does not have it"):
        Checkpoint.open(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a.weight": "../model-1.safetensors"}}))
    with pytest.raises(WeightsError, match="plain file name"):
        Checkpoint.open(tmp_path)
    for wrong in ("{", "[]", "{}", '{"weight_map": 5}', '{"weight_map": {"a": 5, "b": "c"}}'):
        index.write_text(wrong)
        with pytest.raises(WeightsError, match="weight_map|plain"):
            Checkpoint.open(tmp_path)
    index.write_text(json.dumps(good))
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"shard model-2\.safetensors is missing"):
        Checkpoint.open(tmp_path)
    index.unlink()
    save_file(TENSORS, tmp_path / "model-2.safetensors")
    with pytest.raises(WeightsError, match=r"several safetensors files .* and no model\.safetensors\.index\.json"):
        Checkpoint.open(tmp_path)


def test_a_file_cut_while_reading(tmp_path: Path) -> None:
    file = single(tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    os.truncate(file, file.stat().st_size - 8)
    with pytest.raises(WeightsError, match=r"tensor '.*' (ends early|was read)"):
        list(checkpoint.stream())
    with pytest.raises(WeightsError, match="has no tensor 'zzz'"):
        checkpoint.read("zzz")
    file.unlink()
    with pytest.raises(WeightsError, match="cannot be read"):
        checkpoint.read("a.weight")


def test_a_file_that_changes_while_reading(tmp_path: Path) -> None:
    file = single(tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    stream = checkpoint.stream()
    next(stream)
    content = file.read_bytes()
    os.utime(file, ns=(0, 0))  # written to, with the same length
    with pytest.raises(WeightsError, match=r"model.safetensors: changed while tensor '.*' was read"):
        list(stream)
    file.unlink()
    file.write_bytes(content)  # replaced by another
    with pytest.raises(WeightsError, match="changed while tensor"):
        list(checkpoint.stream())


def test_reading_in_an_order_of_ones_own(tmp_path: Path) -> None:
    single(tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    names = list(reversed(checkpoint.entries))
    assert [name for name, _ in checkpoint.stream(names)] == names
    assert all(torch.equal(t, checkpoint.read(name)) for name, t in checkpoint.stream(names[:2]))


def test_opening_needs_no_torch(tmp_path: Path) -> None:
    single(tmp_path)
    code = (
        "import sys; from pagoda.weights.reader import Checkpoint;"
        "assert Checkpoint.open(sys.argv[1]).num_bytes == 62; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_header_alone(tmp_path: Path) -> None:
    entries = read_header(single(tmp_path))
    assert list(entries) == sorted(entries, key=lambda n: (entries[n].offset, entries[n].num_bytes))


PEAK = """
import sys, resource
import torch
from pagoda.weights.reader import Checkpoint
def peak(): return int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1]) * 1024
torch.empty(8).to(torch.bfloat16)
checkpoint = Checkpoint.open(sys.argv[1])
model = {n: torch.empty(e.shape, dtype=torch.float32) for n, e in checkpoint.entries.items()}
before = peak()
for name, tensor in checkpoint.stream():
    model[name].copy_(tensor)
print(peak() - before, sum(t.numel() * 4 for t in model.values()), checkpoint.largest_bytes)
"""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_peak_memory_is_the_model_and_one_tensor(tmp_path: Path, dtype: torch.dtype) -> None:
    big = {"embed": torch.zeros(4000, 1024, dtype=dtype)}
    layers = {f"layer.{i}": torch.zeros(1024, 1024 + 16 * i, dtype=dtype) for i in range(40)}
    save_file(big | layers, tmp_path / "model.safetensors")
    done = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path)], check=True, capture_output=True, text=True)
    growth, model, largest = map(int, done.stdout.split())
    assert model > 180 << 20
    assert growth <= model + max(largest + AHEAD_BYTES, RING_BYTES) + (4 << 20)
