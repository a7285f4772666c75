"""Networks against Appendix C: parameter counts, plainly written formulas, spectral norm."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils.parametrizations import spectral_norm

from mpcc.config import PRESETS, Config
from mpcc.fast import doubled_conv
from mpcc.model.layers import Conv, Linear
from mpcc.model.networks import Generator, build_networks, n_parameters

COUNTS = {  # generator, discriminator, what the encoder has of its own
    "mnist": (157_249, 148_465, 171_120),
    "omniglot": (337_153, 263_489, 301_872),
    "fmnist": (590_369, 591_841, 670_880),
    "cifar10": (9_360_899, 9_452_929, 10_818_304),
    "cifar20": (9_362_179, 9_452_929, 10_818_304),
}
SMALL = dict(width=1, latent_size=8, n_clusters=3)


def build(config: Config, seed: int = 0):
    torch.manual_seed(seed)
    return [network.double() for network in build_networks(config)]


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_are_those_of_appendix_c(name):
    generator, discriminator, encoder = build_networks(PRESETS[name])
    own = n_parameters(encoder) - n_parameters(encoder.trunk)
    assert (n_parameters(generator), n_parameters(discriminator), own) == COUNTS[name]
    assert name != "mnist" or n_parameters(encoder) == 277_968  # with the blocks that it shares


@pytest.mark.parametrize("size", [8, 16, 32, 64])
@pytest.mark.parametrize("mode", ["plain", "split", "copy"])
def test_every_size_and_mode_gives_images_scores_and_latents(size, mode):
    config = Config(
        dataset="cifar10", image_size=size, latent_mode=mode, **SMALL | {"latent_size": 60}
    )
    generator, discriminator, encoder = build(config)
    z, y = torch.randn(4, 60).double(), torch.tensor([0, 1, 2, 0])
    x = generator(z, y)
    assert x.shape == (4, 3, size, size) and x.abs().max() <= 1
    assert discriminator(x).shape == (4,)
    mean, log_var = encoder(x)
    assert mean.shape == log_var.shape == (4, 60)


def test_spectral_layer_is_torchs_own_spectral_norm():
    torch.manual_seed(0)
    for ours, theirs in (
        (Linear(5, 7).double(), torch.nn.Linear(5, 7).double()),
        (Conv(3, 4, 3).double(), torch.nn.Conv2d(3, 4, 3, padding=1).double()),
    ):
        theirs.load_state_dict({"weight": ours.weight.data, "bias": ours.bias.data})
        spectral_norm(theirs, n_power_iterations=200)
        ours.power_iterate(200)
        x = torch.randn((2, 5) if isinstance(ours, Linear) else (2, 3, 6, 6)).double()
        theirs.train()
        torch.testing.assert_close(ours(x), theirs(x))
        sigma = torch.linalg.matrix_norm(ours.used_weight().flatten(1), 2)
        torch.testing.assert_close(sigma, torch.ones_like(sigma))


def test_weights_start_normal_with_deviation_002():
    torch.manual_seed(0)
    generator = build_networks(PRESETS["fmnist"])[0]
    for name, parameter in generator.named_parameters():
        if parameter.dim() > 1:
            five_sigma = 5 * 0.02 / (2 * parameter.numel()) ** 0.5
            assert abs(parameter.std().item() - 0.02) < five_sigma, name


@pytest.mark.parametrize("n_together", [1, 2, 5])
@pytest.mark.parametrize("upsampling", ["bilinear", "nearest"])
def test_convolution_of_the_doubled_image_by_taps_is_torchs_own(
    upsampling, n_together, monkeypatch
):
    x, weight, bias = (torch.randn(*size).double() for size in ((5, 3, 4, 6), (2, 3, 3, 3), (2,)))
    monkeypatch.setattr(doubled_conv, "TAP_BYTES", n_together * 9 * 2 * 4 * 6 * 8)
    given = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    align = {} if upsampling == "nearest" else {"align_corners": False}
    doubled = F.interpolate(x, scale_factor=2, mode=upsampling, **align)
    theirs = F.conv2d(doubled, weight, bias, padding=1)
    ours = doubled_conv.convolve_doubled(x, weight, bias, upsampling)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(ours, theirs)
    gradient = torch.randn_like(theirs)
    for a, b in zip(
        torch.autograd.grad(ours, given, gradient),
        torch.autograd.grad(theirs, given, gradient),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def _sn(layer):
    return layer.weight / torch.linalg.matrix_norm(layer.weight.flatten(1), 2)


def _conv(layer, x):
    return F.conv2d(x, _sn(layer), layer.bias, padding=layer.weight.shape[-1] // 2)


def _batch_norm(x, gain, shift):
    mean = x.mean((0, 2, 3), keepdim=True)
    var = ((x - mean) ** 2).mean((0, 2, 3), keepdim=True)
    return (x - mean) / torch.sqrt(var + 1e-5) * gain + shift


def _converge(*networks):
    for network in networks:
        for module in network.modules():
            if hasattr(module, "power_iterate"):
                module.power_iterate(2000)


@pytest.mark.parametrize("mode", ["plain", "split", "copy"])
@pytest.mark.parametrize("upsampling", ["bilinear", "nearest"])
def test_generator_is_figure_4a_and_table_5_written_plainly(mode, upsampling):
    config = Config(latent_mode=mode, upsampling=upsampling, **SMALL)
    generator = build(config)[0]
    _converge(generator)
    z, y = torch.randn(5, 8).double(), torch.tensor([0, 1, 2, 1, 0])

    def up(x):
        extra = {} if upsampling == "nearest" else {"align_corners": False}
        return F.interpolate(x, scale_factor=2, mode=upsampling, **extra)

    if mode == "plain":
        parts = [z] + [None] * 3
    else:
        parts = list(z.split(2, 1)) if mode == "split" else [z] * 4

    def conditional_norm(norm, x, part):
        if mode == "plain":
            gain, shift = norm.gain.weight[y], norm.shift.weight[y]
        else:
            c = torch.cat((generator.embed.weight[y], part), 1)
            gain, shift = c @ _sn(norm.gain).T, c @ _sn(norm.shift).T
        return _batch_norm(x, 1 + gain[:, :, None, None], shift[:, :, None, None])

    first = parts[0] @ _sn(generator.first).T + generator.first.bias
    h = first.view(5, 4, 4, 4).permute(0, 3, 1, 2)
    for block, part in zip(generator.blocks, parts[1:], strict=True):
        g = _conv(block.conv1, up(F.relu(conditional_norm(block.norm1, h, part))))
        g = _conv(block.conv2, F.relu(conditional_norm(block.norm2, g, part)))
        h = g + _conv(block.shortcut, up(h))
    norm = generator.norm
    h = _batch_norm(h, norm.weight.view(1, -1, 1, 1), norm.bias.view(1, -1, 1, 1))
    expected = torch.tanh(_conv(generator.last, F.relu(h)))
    torch.testing.assert_close(generator(z, y), expected, atol=1e-9, rtol=1e-7)


def _block(block, x, *, down, first=False):
    h = _conv(block.conv1, x if first else F.relu(x))
    h = _conv(block.conv2, F.relu(h))
    if not down:
        return h + (x if block.shortcut is None else _conv(block.shortcut, x))
    if first:
        return F.avg_pool2d(h, 2) + _conv(block.shortcut, F.avg_pool2d(x, 2))
    return F.avg_pool2d(h, 2) + F.avg_pool2d(_conv(block.shortcut, x), 2)


@pytest.mark.parametrize("conditional", [False, True])
def test_discriminator_and_encoder_are_tables_6_and_7_written_plainly(conditional):
    config = Config(conditional=conditional, **SMALL)
    _, discriminator, encoder = build(config)
    _converge(discriminator, encoder)
    x, y = torch.randn(3, 1, 32, 32).double(), torch.tensor([2, 0, 1])
    a, b, c = discriminator.trunk
    shared = _block(c, _block(b, _block(a, x, down=True, first=True), down=True), down=False)
    h = F.relu(_block(discriminator.block, shared, down=False)).sum((2, 3))
    expected = (h @ _sn(discriminator.score).T + discriminator.score.bias)[:, 0]
    if conditional:
        expected = expected + (_sn(discriminator.embed)[y] * h).sum(1)
    torch.testing.assert_close(discriminator(x, y), expected, atol=1e-9, rtol=1e-7)

    flat, down1, down2 = encoder.blocks
    e = _block(down2, _block(down1, _block(flat, shared, down=False), down=True), down=True)
    features = e.permute(0, 2, 3, 1).reshape(3, -1)
    for head, got in zip((encoder.mean, encoder.log_var), encoder(x), strict=True):
        hidden = F.relu(features @ _sn(head[0]).T + head[0].bias)
        expected = hidden @ _sn(head[2]).T + head[2].bias
        torch.testing.assert_close(got, expected, atol=1e-9, rtol=1e-7)


def test_encoder_without_sharing_has_a_trunk_of_its_own():
    shared = build(Config(**SMALL))
    apart = build(Config(encoder_shares_discriminator=False, **SMALL))
    assert shared[2].trunk is shared[1].trunk and apart[2].trunk is not apart[1].trunk
    assert n_parameters(apart[2]) == n_parameters(shared[2])


@pytest.mark.parametrize("mode", ["plain", "split", "copy"])
def test_generator_under_a_normal_prior_takes_no_y(mode):
    generator = build(Config(prior="normal", latent_mode=mode, **SMALL))[0]
    assert generator(torch.randn(2, 8).double(), None).shape == (2, 1, 32, 32)
    assert not any("embed" in name for name, _ in generator.named_parameters())


def test_standing_statistics_are_the_mean_over_the_passes():
    generator: Generator = build(Config(**SMALL))[0]
    norm = generator.blocks[0].norm1
    xs = [torch.randn(6, 4, 4, 4).double() * (i + 1) + i for i in range(3)]
    norm.state = "collecting"
    for x in xs:
        norm.normalise(x)
    norm.state = "standing"
    mean = sum(x.mean((0, 2, 3)) for x in xs) / 3
    var = sum(x.var((0, 2, 3), correction=0) for x in xs) / 3
    one = xs[0][:1]
    expected = (one - mean.view(1, -1, 1, 1)) / torch.sqrt(var.view(1, -1, 1, 1) + 1e-5)
    torch.testing.assert_close(norm.normalise(one), expected)
