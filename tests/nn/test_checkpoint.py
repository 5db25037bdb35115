"""Checkpoints on disk."""

import json
import os
import pickle

import pytest
import torch
from torch import nn

from pyro_ext.nn import GlowNet, load_checkpoint, save_checkpoint
from pyro_ext.nn.state_tree import of_json, to_json

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
        ({}, "holds no pyro_ext module"),
        ({"class": "PixelCNNNet", "config": "{}"}, "holds PixelCNNNet, expected GlowNet"),
        ({"class": "GlowNet"}, "does not say how its GlowNet was built"),
        ({"class": "GlowNet", "config": config}, "arguments of this GlowNet.*'spline'"),
        ({"class": "GlowNet", "config": "{}"}, "arguments of this GlowNet.*'image_shape'"),
        ({"class": "GlowNet", "config": dtype}, "dtypes of torch"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_checkpoint(GlowNet, write(path, **metadata))
    path.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="no safetensors file"):
        load_checkpoint(GlowNet, path)


def mlp():
    return nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))


class Training:
    """A few steps of a net with dropout, momentum and a schedule."""

    def __init__(self):
        self.net = mlp()
        self.optimizer = torch.optim.Adam(self.net.parameters(), 0.1, amsgrad=True)
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 0.1, 20)

    def run(self, num_steps):
        for _ in range(num_steps):
            self.optimizer.zero_grad()
            self.net(torch.randn(16, 3)).square().mean().backward()
            self.optimizer.step()
            self.scheduler.step()
        return nn.utils.parameters_to_vector(self.net.parameters())

    @property
    def parts(self):
        return {"optimizer": self.optimizer, "scheduler": self.scheduler}


def test_training_goes_on_bit_by_bit(tmp_path):
    path = tmp_path / "training.safetensors"
    training = Training()
    training.run(7)
    save_checkpoint(training.net, path, **training.parts)
    expected = training.run(8)
    torch.manual_seed(99)
    again = Training()
    load_checkpoint(again.net, path, **again.parts)
    assert torch.equal(again.run(8), expected)


def test_a_module_of_any_class_is_filled_in(tmp_path):
    path = tmp_path / "net.safetensors"
    net, other = mlp(), mlp()
    save_checkpoint(net, path)
    assert load_checkpoint(other, path) is other
    assert torch.equal(other[0].weight, net[0].weight)
    with pytest.raises(ValueError, match="does not say how its Sequential was built"):
        load_checkpoint(nn.Sequential, path)
    with pytest.raises(ValueError, match=r"(?s)does not fit this Sequential.*size mismatch"):
        load_checkpoint(nn.Sequential(nn.Linear(3, 9), nn.Dropout(), nn.Linear(9, 1)), path)
    with pytest.raises(ValueError, match=r"holds training of \[\], not of \['optimizer'\]"):
        load_checkpoint(net, path, optimizer=torch.optim.Adam(net.parameters()))


def test_tied_parameters(tmp_path):
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].weight = net[0].weight
    save_checkpoint(net, tmp_path / "net")
    other = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert torch.equal(load_checkpoint(other, tmp_path / "net")[1].weight, net[0].weight)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_nothing_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for write_evil in (pickle.dump, torch.save):
        with open("evil", "wb") as file:
            write_evil(Evil(), file)
        with pytest.raises(ValueError, match="no safetensors file"):
            load_checkpoint(mlp(), "evil")
        with pytest.raises(ValueError, match="no safetensors file"):
            load_checkpoint(GlowNet, "evil")
    assert not (tmp_path / "executed").exists()
    torch.load("evil", weights_only=False)  # the danger is real
    assert (tmp_path / "executed").exists()


def test_objects_are_not_saved(tmp_path):
    class Odd:
        def state_dict(self):
            return {"thing": object()}

    with pytest.raises(ValueError, match=r"training/.* holds object"):
        save_checkpoint(mlp(), tmp_path / "net", odd=Odd())
    with pytest.raises(ValueError, match="rate is float, which has no state_dict"):
        save_checkpoint(mlp(), tmp_path / "net", rate=0.1)
    assert not list(tmp_path.iterdir())


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "net.safetensors"
    save_checkpoint(mlp(), path)
    whole = path.read_bytes()
    for length in (0, 4, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="no safetensors file, or is not whole"):
            load_checkpoint(mlp(), path)


def test_a_later_format_is_refused(tmp_path):
    path = write(tmp_path / "net", **{"class": "GlowNet", "format": "2", "version": "9.9"})
    with pytest.raises(ValueError, match=r"format 2, written by pyro_ext 9\.9"):
        load_checkpoint(GlowNet, path)


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "net.safetensors"
    save_checkpoint(mlp(), path)
    before = path.read_bytes()

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(mlp(), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_trees_round_trip():
    tree = {
        "a": [1, 2.5, None, True, "x", float("inf")],
        3: (torch.arange(3), torch.float64),
        "n": {"deep": torch.zeros(0)},
    }
    tensors = {}
    again = of_json(json.loads(json.dumps(to_json(tree, tensors, "t"))), tensors)
    assert list(again) == ["a", 3, "n"]
    assert again["a"] == tree["a"]
    assert torch.equal(again[3][0], tree[3][0])
    assert again[3][1] is torch.float64
    assert again["n"]["deep"].shape == (0,)
    for made, message in [
        ({"call": "os.system"}, "no 'call'"),
        ({"tensor": "missing"}, "does not hold"),
        ({"dtype": "load"}, "dtypes of torch"),
        ([1], "has no"),
    ]:
        with pytest.raises(ValueError, match=message):
            of_json(made, {})
    with pytest.raises(ValueError, match="has the key"):
        to_json({1.5: 2}, {}, "t")
