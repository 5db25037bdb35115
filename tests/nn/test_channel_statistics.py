"""Two processes start a net from the data of both.

The file is also the script that the processes run: ``test_channel_statistics.py RESULT``.
"""

import os
import subprocess
import sys

import torch
import torch.distributed

from pyro_ext.nn import GlowNet
from pyro_ext.nn.channel_statistics import channel_statistics


def data():
    generator = torch.Generator().manual_seed(0)
    return 2 + torch.randn(16, 3, 4, 4, generator=generator).double()


def net():
    torch.manual_seed(0)
    return GlowNet((3, 4, 4), depth=2, levels=1, width=4).double()


def test_statistics_are_those_of_channels():
    x = data()
    mean, std = channel_statistics(x, "Test")
    assert torch.allclose(mean, x.mean((0, 2, 3)))
    assert torch.allclose(std, x.var((0, 2, 3), correction=0).sqrt())


def test_two_processes_start_as_one(tmp_path):
    port = str(29500 + os.getpid() % 1000)
    runs = []
    for rank in range(2):
        world = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "WORLD_SIZE": "2",
            "RANK": str(rank),
        }
        path = os.pathsep.join(sys.path)
        command = [sys.executable, __file__, str(tmp_path / f"{rank}.pt")]
        runs.append(subprocess.Popen(command, env={**os.environ, **world, "PYTHONPATH": path}))
    assert [run.wait(timeout=240) for run in runs] == [0, 0]
    expected = net().initialize(data()).state_dict()
    for rank in range(2):
        for name, seen in torch.load(tmp_path / f"{rank}.pt", weights_only=True).items():
            assert torch.allclose(seen, expected[name], atol=1e-10), name


def main():
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    part = data()[:4] if rank == 0 else data()[4:]  # of unequal size
    torch.save(net().initialize(part).state_dict(), sys.argv[1])
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
