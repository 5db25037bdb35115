"""Lines and directions in latent space against a linear net, where they are those of pixels."""

import pytest
import torch

from pyro_ext.models import attribute_direction, interpolate
from pyro_ext.nn import GlowNet


def images_of(*batch):
    return torch.randn(*batch, 1, 8, 4, dtype=torch.float64)


def build(coupling="affine_bounded", spread=0.05, **options):
    """A net whose parameters are all at work, a linear one without spread."""
    net = GlowNet((1, 8, 4), 2, 2, 8, coupling, **options).double()
    labels = torch.arange(16) % 3 if net.num_classes else None
    net.initialize(images_of(16), labels)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return net


def linear():
    """Fresh couplings do nothing, and fresh priors neither."""
    return build("additive", spread=0.0)


def test_lines_of_a_linear_net_are_those_of_pixels():
    x1, x2 = images_of(3), images_of(3)
    weight = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]).double().reshape(-1, 1, 1, 1, 1)
    seen = interpolate(linear(), x1, x2, 5)
    assert torch.allclose(seen, x1 + weight * (x2 - x1), atol=1e-12)
    curved = interpolate(build(), x1, x2, 5)
    assert not torch.allclose(curved, seen, atol=1e-2)  # or equality would say nothing


def test_the_middle_is_the_mean_of_the_latents():
    net = build()
    x1, x2 = images_of(), images_of()
    middle = interpolate(net, x1, x2, 3)[1]
    expected = (net.encode(x1)[0] + net.encode(x2)[0]) / 2
    assert torch.allclose(net.encode(middle)[0], expected, atol=1e-10)


@pytest.mark.parametrize("shapes", [((), ()), ((2, 3), (2, 3)), ((2, 1), (3,))])
@pytest.mark.parametrize("num", [2, 4])
def test_ends_are_the_images(shapes, num):
    x1, x2 = (images_of(*shape) for shape in shapes)
    seen = interpolate(build(), x1, x2, num)
    x1, x2 = torch.broadcast_tensors(x1, x2)
    assert seen.shape == (num, *x1.shape)
    assert not seen.requires_grad
    assert torch.allclose(seen[0], x1, atol=1e-10)
    assert torch.allclose(seen[-1], x2, atol=1e-10)


@pytest.mark.parametrize("condition_couplings", [False, True])
def test_contexts_matter_if_the_couplings_see_them(condition_couplings):
    net = build(num_classes=3, condition_couplings=condition_couplings)
    x1, x2 = images_of(2), images_of(2)
    one = interpolate(net, x1, x2, 4, torch.tensor(0))
    for context in (torch.tensor([1, 2]), torch.tensor([[2], [1], [2]])):
        other = interpolate(net, x1, x2, 4, context)
        shape = (*torch.broadcast_shapes(context.shape, (2,)), 1, 8, 4)
        assert other.shape == (4, *shape)
        assert torch.allclose(other[0], x1.expand(shape), atol=1e-10)
        assert torch.allclose(other[-1], x2.expand(shape), atol=1e-10)
        same = torch.allclose(other, one.reshape(4, *[1] * (context.dim() - 1), *x1.shape))
        assert same != condition_couplings


def test_direction_is_the_difference_of_the_means():
    net, images = build(num_classes=3), images_of(7)
    labels = torch.tensor([1, 0, 0, 1, 0, 1, 0]).bool()
    context = torch.arange(7) % 3
    latents = [net.encode(image, label)[0] for image, label in zip(images, context, strict=True)]
    with_it = (latents[0] + latents[3] + latents[5]) / 3
    without = (latents[1] + latents[2] + latents[4] + latents[6]) / 4
    seen = attribute_direction(net, images, labels, context)
    assert seen.shape == (32,)
    assert not seen.requires_grad
    assert torch.allclose(seen, with_it - without, atol=1e-10)
    reverse = attribute_direction(net, images, ~labels, context)
    assert torch.allclose(reverse, -seen, atol=1e-10)


def test_direction_of_a_linear_net_is_that_of_pixels():
    net, images = linear(), images_of(10)
    labels = torch.arange(10) < 4
    direction = attribute_direction(net, images, labels)
    moved = net.decode(net.encode(images)[0] + 0.5 * direction)[0]
    shift = images[labels].mean(0) - images[~labels].mean(0)
    assert torch.allclose(moved, images + 0.5 * shift, atol=1e-12)


def test_nets_are_not_started():
    net = GlowNet((1, 8, 4), 2, 2, 8).double()
    interpolate(net, images_of(), images_of(), 3)
    attribute_direction(net, images_of(3), torch.tensor([True, False, True]))
    assert not net.is_initialized


def test_bad_inputs():
    net, images = linear(), images_of(3)
    with pytest.raises(ValueError, match="num must be an integer >= 2"):
        interpolate(net, images, images, 1)
    with pytest.raises(ValueError, match="takes no context"):
        interpolate(net, images, images, 3, torch.tensor(1))
    for labels in (torch.tensor([0, 1, 1]), torch.tensor([True, False])):
        with pytest.raises(ValueError, match="one bool for each"):
            attribute_direction(net, images, labels)
    with pytest.raises(ValueError, match="one bool for each"):
        attribute_direction(net, images_of(2, 3), torch.ones(2, 3).bool())
    for labels in (torch.ones(3).bool(), torch.zeros(3).bool()):
        with pytest.raises(ValueError, match="with the attribute and images without"):
            attribute_direction(net, images, labels)
