"""Checkpoints on disk."""

import json

import pytest
import torch
from torch import nn

from pyro_ext.nn import GlowNet, load_checkpoint, save_checkpoint

OPTIONS = {"depth": 2, "levels": 1, "width": 8, "num_classes": 3, "classifier": True}


def net_of(**options):
    net = GlowNet((1, 8, 8), **OPTIONS, **options)
    return net.initialize(torch.randn(20, 1, 8, 8), torch.zeros(20, dtype=torch.long))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip_is_exact(tmp_path, dtype):
    net = net_of(compute_dtype=dtype).to(dtype)
    path = tmp_path / "net.safetensors"
    save_checkpoint(net, path)
    state = torch.get_rng_state()
    again = load_checkpoint(GlowNet, path)
    assert torch.equal(torch.get_rng_state(), state)
    assert again.config == net.config
    x, y = torch.randn(4, 1, 8, 8, dtype=dtype), torch.tensor([0, 1, 2, 0])
    assert torch.equal(again(x, y), net(x, y))
    assert again.is_initialized


def write(path, **metadata):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, path, metadata)
    return path


def test_files_of_others_are_refused(tmp_path):
    path = tmp_path / "net.safetensors"
    config = json.dumps({"image_shape": [1, 8, 8], "spline": True})
    dtype = json.dumps({"image_shape": [1, 8, 8], "compute_dtype": {"dtype": "load"}})
    for metadata, message in [
        ({}, "holds no pyro_ext network"),
        ({"class": "PixelCNNNet", "config": "{}"}, "holds PixelCNNNet, expected GlowNet"),
        ({"class": "GlowNet"}, "expected GlowNet"),
        ({"class": "GlowNet", "config": config}, "arguments of this GlowNet.*'spline'"),
        ({"class": "GlowNet", "config": "{}"}, "arguments of this GlowNet.*'image_shape'"),
        ({"class": "GlowNet", "config": dtype}, "dtypes besides numbers"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_checkpoint(GlowNet, write(path, **metadata))
    path.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="no safetensors file"):
        load_checkpoint(GlowNet, path)
    with pytest.raises(ValueError, match="config"):
        save_checkpoint(nn.Linear(2, 2), path)
