"""Draws of a PixelCNN as one CUDA graph."""

from typing import Any

import torch
from torch import Tensor

from pyro_ext.nn.pixel_cnn import PixelCNNNet
from pyro_ext.nn.pixel_sampler import draw


class GraphedDecoder:
    """:meth:`PixelCNNNet.decode`, recorded once and replayed by the GPU alone.

    Drawing is a long chain of small products, which a GPU finishes sooner than Python can ask for
    them. The first call of each shape records the whole chain, in about the time of a plain call
    and more memory; later ones replay it. The net's parameters are read anew at each replay, so it
    may be trained in between; to replace them or to move the net needs a new decoder.

    Args:
        net: on a CUDA device.

    Raises:
        ValueError: if the net is on another device.

    Example:
        >>> net = PixelCNNNet((1, 4, 4), 2, 5, 8, 1, 2, head="bernoulli")
        >>> GraphedDecoder(net)
        Traceback (most recent call last):
        ...
        ValueError: CUDA graphs need a net on a CUDA device, got one on cpu: call net.decode.
    """

    def __init__(self, net: PixelCNNNet):
        device = net.output.bias.device
        if device.type != "cuda":
            raise ValueError(
                f"CUDA graphs need a net on a CUDA device, got one on {device}: call net.decode."
            )
        self.net = net
        self.recordings: dict[Any, Recording] = {}

    @torch.no_grad()
    def __call__(
        self, uniforms: Tensor, context: Tensor | None = None, temperature: float | Tensor = 1.0
    ) -> Tensor:
        """Images, as of :meth:`PixelCNNNet.decode`."""
        temperature = torch.as_tensor(temperature).to(uniforms)
        inputs, batch = self.net.decode_inputs(uniforms, context, temperature)
        shape = tuple(None if x is None else x.shape for x in inputs)
        if shape not in self.recordings:
            self.recordings[shape] = Recording(self.net, inputs)
        return self.recordings[shape].replay(inputs).reshape(*batch, *self.net.image_shape)


class Recording:
    """One chain of draws, with inputs and images in fixed places."""

    def __init__(self, net: PixelCNNNet, inputs: Any):
        self.inputs: Any = [None if x is None else x.clone() for x in inputs]
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(inputs[0].device):
            self._warm_up(net)
            with torch.cuda.graph(self.graph):
                self.images = draw(net, *self.inputs)

    def _warm_up(self, net: PixelCNNNet) -> None:
        """One plain run, on a stream of its own, in which libraries allocate what they need."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            draw(net, *self.inputs)
        torch.cuda.current_stream().wait_stream(stream)

    def replay(self, inputs: Any) -> Tensor:
        """The images of other inputs."""
        for own, given in zip(self.inputs, inputs, strict=True):
            if own is not None:
                own.copy_(given)
        self.graph.replay()
        return self.images.clone()
