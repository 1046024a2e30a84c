"""Networks: sizes as released, shapes, style as an argument."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.resnet import BasicBlock

from rebalance.methods.balagan.method import build_translator
from rebalance.methods.balagan.networks import Discriminator, Translator
from rebalance.methods.balagan.options import GeneratorOptions
from rebalance.networks.blocks import adaptive_instance_norm, instance_norm, padded
from rebalance.networks.encoder import Backbone, ProjectionHead, ResidualBlock, VariationalAutoencoder

pytestmark = pytest.mark.usefixtures("one_thread")


def n_parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def small_translator(channels: int = 3, **sizes: int) -> Translator:
    torch.manual_seed(0)
    options = {"base_filters": 4, "content_downs": 2, "reference_downs": 3, "style_size": 6, "mlp_width": 8}
    n_class_codes = sizes.pop("n_class_codes", 0)
    return build_translator(channels, GeneratorOptions(**{**options, **sizes}), n_class_codes)


def translate(translator: Translator, source: torch.Tensor, reference: torch.Tensor, label: int = 0) -> torch.Tensor:
    return translator(source, reference, torch.full((len(source),), label))


@pytest.mark.parametrize(("filters", "expected"), [(32, 7_804_419), (64, 29_866_435)])
def test_generator_has_the_released_number_of_parameters(filters, expected):
    with torch.device("meta"):
        generator = build_translator(3, GeneratorOptions(base_filters=filters))
    assert n_parameters(generator) == expected


@pytest.mark.parametrize(("filters", "expected"), [(32, 16_505_394), (64, 54_214_674)])
def test_discriminator_has_the_released_number_of_parameters(filters, expected):
    with torch.device("meta"):
        discriminator = Discriminator(41, channels=3, base_filters=filters, blocks=10)
    assert n_parameters(discriminator) == expected


@settings(deadline=None, max_examples=15)
@given(
    channels=st.sampled_from([1, 3]),
    size=st.sampled_from([8, 16, 24]),
    n=st.integers(1, 3),
    content_downs=st.integers(1, 2),
    reference_downs=st.integers(2, 3),
    blocks=st.integers(1, 2),
    layers=st.integers(2, 3),
    kernels=st.sampled_from([(7, 4, 5), (3, 2, 1), (5, 6, 7)]),
)
def test_translations_have_the_shape_and_range_of_images(
    channels, size, n, content_downs, reference_downs, blocks, layers, kernels
):
    stem, down, up = kernels
    translator = small_translator(
        channels, content_downs=content_downs, reference_downs=reference_downs, residual_blocks=blocks,
        mlp_layers=layers, stem_kernel=stem, down_kernel=down, up_kernel=up,
    )  # fmt: skip
    source, reference = torch.rand(2, n, channels, size, size) * 2 - 1
    with torch.no_grad():
        images = translate(translator, source, reference)
        codes = translator.style(reference, torch.zeros(n, dtype=torch.int64))
        content = translator.source_encoder(source)
    assert images.shape == source.shape and images.dtype == torch.float32
    assert images.abs().max() <= 1
    assert codes.shape == (n, 6)
    assert content.shape == (n, 4 * 2**content_downs, size >> content_downs, size >> content_downs)


def test_outputs_stay_in_range_for_extreme_codes():
    translator = small_translator()
    with torch.no_grad():
        content = translator.source_encoder(torch.ones(2, 3, 8, 8)) * 100
        images = translator.decoder(content, torch.full((2, 6), 1e3))
    assert images.isfinite().all() and images.abs().max() <= 1


def test_reference_and_source_each_change_the_translation():
    translator = small_translator()
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        base = translate(translator, images[:1], images[1:2])
        other_style = translate(translator, images[:1], images[2:3])
        other_source = translate(translator, images[3:], images[1:2])
    assert (base - other_style).abs().max() > 1e-3
    assert (base - other_source).abs().max() > 1e-3


def test_each_image_of_a_batch_gets_its_own_style():
    translator = small_translator()
    source, reference = torch.rand(2, 3, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        together = translate(translator, source, reference)
        alone = torch.cat([translate(translator, source[i : i + 1], reference[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_style_leaves_no_state_on_modules():
    translator = small_translator()
    weights = {name: tensor.clone() for name, tensor in translator.state_dict().items()}
    attributes = {name: set(vars(module)) for name, module in translator.named_modules()}
    source, reference = torch.rand(2, 2, 3, 8, 8) * 2 - 1
    before = translate(translator, source, reference)
    assert {name: set(vars(module)) for name, module in translator.named_modules()} == attributes
    assert weights.keys() == translator.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in translator.state_dict().items())
    # A non-leaf tensor stored on a module would make this raise.
    assert torch.equal(translate(copy.deepcopy(translator), source, reference), before)


def test_class_codes_add_a_learned_vector_of_the_class():
    plain, coded = small_translator(), small_translator(n_class_codes=5)
    source, reference = torch.rand(2, 3, 3, 8, 8) * 2 - 1
    labels = torch.tensor([4, 0, 4])
    with torch.no_grad():
        assert torch.equal(translate(plain, source, reference, 0), translate(plain, source, reference, 4))
        added = coded.style(reference, labels) - coded.reference_encoder(reference)
        assert not torch.equal(translate(coded, source, reference, 0), translate(coded, source, reference, 4))
    torch.testing.assert_close(added, coded.class_codes.weight[labels].detach(), rtol=1e-4, atol=1e-5)
    assert n_parameters(coded) == n_parameters(plain) + 5 * 6


def test_a_forward_pass_does_not_depend_on_the_former_one():
    translator = small_translator()
    first, second = torch.rand(2, 2, 3, 8, 8) * 2 - 1
    with torch.no_grad():
        before = translate(translator, first, second)
        translate(translator, second, first)
        assert torch.equal(translate(translator, first, second), before)


@settings(deadline=None, max_examples=25)
@given(
    n=st.integers(1, 3), channels=st.integers(1, 5), height=st.integers(2, 6), width=st.integers(1, 6),
    scale=st.floats(0.1, 50), shift=st.floats(-20, 20), seed=st.integers(0, 99),
)  # fmt: skip
def test_instance_norm_is_torch_instance_norm(n, channels, height, width, scale, shift, seed):
    x = torch.randn(n, channels, height, width, generator=torch.Generator().manual_seed(seed)) * scale + shift
    torch.testing.assert_close(instance_norm(x), F.instance_norm(x), rtol=1e-3, atol=1e-4)


def test_instance_norm_keeps_the_channels_last_layout():
    x = torch.randn(2, 4, 5, 5).to(memory_format=torch.channels_last)
    assert instance_norm(x).is_contiguous(memory_format=torch.channels_last)


def test_adaptive_instance_norm_by_hand():
    # One channel of 1, 3, 5, 7 has mean 4 and variance 5; another of 2, 2, 4, 4 has mean 3 and variance 1.
    x = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]], [[2.0, 2.0], [4.0, 4.0]]]])
    scale, shift = torch.tensor([[1.0, -0.5]]), torch.tensor([[10.0, -1.0]])
    unit = 1 / 5**0.5
    expected = torch.tensor(
        [
            [
                [[10 - 6 * unit, 10 - 2 * unit], [10 + 2 * unit, 10 + 6 * unit]],
                [[-1.5, -1.5], [-0.5, -0.5]],
            ]
        ]
    )
    torch.testing.assert_close(adaptive_instance_norm(x, scale, shift), expected, rtol=1e-4, atol=1e-4)


def test_adaptive_instance_norm_without_style_is_instance_norm():
    x, zeros = torch.randn(2, 3, 4, 4), torch.zeros(2, 3)
    torch.testing.assert_close(adaptive_instance_norm(x, zeros, zeros), instance_norm(x))


@pytest.mark.parametrize("upsampling", ["nearest", "bilinear"])
@pytest.mark.parametrize("style_in_upsampling", [False, True])
def test_every_kind_of_upsampling_gives_images(upsampling, style_in_upsampling):
    translator = small_translator(upsampling=upsampling, style_in_upsampling=style_in_upsampling)
    with torch.no_grad():
        made = translate(translator, torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16))
    assert made.shape == (2, 3, 16, 16) and made.abs().max() <= 1


def grid_of(upsampling: str) -> float:
    """How much images of smooth content change from even to odd rows, over how much they do from odd to even ones."""
    even_to_odd, odd_to_even = 0.0, 0.0
    for seed in range(60):
        torch.manual_seed(seed)
        sizes = {"base_filters": 4, "content_downs": 1, "reference_downs": 2, "style_size": 6, "mlp_width": 8}
        options = GeneratorOptions(up_kernel=3, stem_kernel=1, upsampling=upsampling, **sizes)
        decoder = build_translator(1, options).decoder
        content = F.interpolate(torch.randn(1, 8, 4, 4), size=32, mode="bicubic")
        with torch.no_grad():
            inner = decoder(content, torch.randn(1, 6))[..., 8:-8, :]
        changes = inner.diff(dim=2).square().mean((0, 1, 3))
        even_to_odd += float(changes[0::2].mean() / changes.mean())
        odd_to_even += float(changes[1::2].mean() / changes.mean())
    return even_to_odd / odd_to_even


def test_bilinear_upsampling_leaves_no_grid():
    assert grid_of("nearest") > 1.4
    assert 0.9 < grid_of("bilinear") < 1.1


def test_style_reaches_the_last_upsampling_only_when_asked():
    content, first, second = torch.randn(1, 16, 4, 4), torch.randn(1, 6), torch.randn(1, 6)

    def seen(style_in_upsampling: bool) -> list[torch.Tensor]:
        decoder = small_translator(style_in_upsampling=style_in_upsampling).decoder
        inputs: list[torch.Tensor] = []
        decoder.to_image.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
        with torch.no_grad():
            decoder(content, first), decoder(content, second)
        return inputs

    # Before the ReLU, instance norm leaves every channel the same mean and spread whatever the style; AdaIN does not.
    assert len(small_translator(style_in_upsampling=True).decoder.style_sizes) == 4
    assert len(small_translator().decoder.style_sizes) == 2
    means = [[x.mean((2, 3)) for x in seen(asked)] for asked in (False, True)]
    without, with_it = (float((a - b).abs().mean()) for a, b in means)
    assert with_it > 3 * without


@pytest.mark.parametrize(("size", "blocks"), [(8, 4), (16, 4), (32, 6)])
def test_a_strided_stem_halves_the_discriminators_maps(size, blocks):
    images, labels = torch.rand(2, 3, size, size), torch.tensor([1, 2])
    plain, strided = small_discriminator(blocks=blocks), small_discriminator(blocks=blocks, stem_stride=2)
    with torch.no_grad():
        shapes = [d.adversarial(d.features(images), labels).shape for d in (plain, strided)]
    assert shapes[0][1] == 2 * shapes[1][1] and shapes[0][2] == 2 * shapes[1][2]


def small_discriminator(n_classes: int = 5, channels: int = 3, **options: object) -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(n_classes, channels=channels, **{"base_filters": 4, "blocks": 4, "stem_kernel": 3, **options})


@pytest.mark.parametrize(("size", "channels", "blocks"), [(8, 3, 4), (16, 1, 6), (12, 3, 2), (20, 1, 4)])
def test_discriminator_shapes(size, channels, blocks):
    discriminator = small_discriminator(5, channels, blocks=blocks)
    side = size >> (blocks // 2 - 1)
    with torch.no_grad():
        features = discriminator.features(torch.rand(2, channels, size, size))
        scores = discriminator.adversarial(features, torch.tensor([4, 0]))
        logits = discriminator.classify(features)
    assert features.shape == (2, 4 * 2 ** (blocks // 2), side, side)
    assert scores.shape == (2, side, side)
    assert logits.shape == (2, 5)


def test_channels_stop_doubling_at_max_filters():
    features = small_discriminator(max_filters=6).features(torch.rand(1, 3, 8, 8))
    assert features.shape[1] == 6


def test_adversarial_scores_are_each_images_own_class_map():
    discriminator = small_discriminator()
    labels = torch.tensor([3, 0, 4])
    with torch.no_grad():
        features = discriminator.features(torch.rand(3, 3, 8, 8))
        maps = discriminator.adversarial_head(F.leaky_relu(features, 0.2))
        scores = discriminator.adversarial(features, labels)
    for row, label in enumerate(labels):
        assert torch.equal(scores[row], maps[row, label])
    assert not torch.equal(maps[:, 3], maps[:, 0])


def test_only_the_own_class_map_gets_a_gradient():
    discriminator = small_discriminator()
    scores = discriminator.adversarial(discriminator.features(torch.rand(2, 3, 8, 8)), torch.tensor([1, 3]))
    scores.sum().backward()
    reached = discriminator.adversarial_head.weight.grad.flatten(1).abs().sum(1) > 0
    assert reached.tolist() == [False, True, False, True, False]


def test_logits_are_the_class_maps_averaged_over_patches():
    discriminator = small_discriminator()
    with torch.no_grad():
        features = discriminator.features(torch.rand(2, 3, 8, 8))
        maps = discriminator.class_head(F.leaky_relu(features, 0.2))
        torch.testing.assert_close(discriminator.classify(features), maps.mean((2, 3)))


def test_without_class_head_there_are_no_logits():
    discriminator = small_discriminator(classifier_head=False)
    features = discriminator.features(torch.rand(1, 3, 8, 8))
    assert not any("class_head" in name for name in discriminator.state_dict())
    with pytest.raises(ValueError, match="class head"):
        discriminator.classify(features)


@pytest.mark.parametrize(("stem", "size", "side"), [("small", 8, 2), ("large", 32, 2), ("small", 17, 5)])
def test_backbone_shapes(stem, size, side):
    backbone = Backbone(3, 4, (1, 2, 1), stem)
    images = torch.rand(2, 3, size, size)
    assert backbone.width == 16
    assert backbone.layers(images).shape == (2, 16, side, side)
    features = backbone(images)
    assert features.shape == (2, 16)
    assert ProjectionHead(16, 5)(features).shape == (2, 5)


def test_backbone_has_the_layers_of_resnet_18():
    with torch.device("meta"):
        backbone = Backbone(3, 64, (2, 2, 2, 2), "large")
    # torchvision's resnet18 has 11,689,512 parameters, 513,000 of them in its fully connected layer.
    assert n_parameters(backbone) == 11_689_512 - 513_000
    assert backbone.width == 512


@pytest.mark.parametrize("channels", [3, 4, 5])
def test_a_residual_block_of_few_channels_has_the_same_gradients_in_both_layouts(channels):
    """And leaves other memory as it is: where a strided 1x1 convolution does not, the process ends within 150 steps."""
    torch.manual_seed(0)
    plain, images = ResidualBlock(channels, 8, 2), torch.randn(24, channels, 8, 8)
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    plain(images).square().sum().backward()
    for _ in range(150):
        last.zero_grad()
        last(images.contiguous(memory_format=torch.channels_last)).square().sum().backward()
    for one, other in zip(plain.parameters(), last.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-3)


def test_a_residual_block_halves_as_that_of_resnet_18_does():
    torch.manual_seed(0)
    shortcut = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 1, 2, bias=False), torch.nn.BatchNorm2d(8))
    theirs, ours = BasicBlock(4, 8, 2, shortcut).eval(), ResidualBlock(4, 8, 2).eval()
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        own.data.copy_(other.data)
    images = torch.randn(2, 4, 9, 8)
    torch.testing.assert_close(ours(images), theirs(images))


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (12, 3), (16, 3), (33, 1)])
def test_vae_shapes_and_range(size, channels):
    vae = VariationalAutoencoder(channels, size, 4, 7)
    images = torch.rand(2, channels, size, size) * 2 - 1
    mean, log_variance = vae.encode(images)
    assert mean.shape == log_variance.shape == (2, 7)
    decoded = vae.decode(mean * 100)
    assert decoded.shape == images.shape
    assert decoded.abs().max() <= 1


@pytest.mark.parametrize("pad", [1, 3])
def test_padding_keeps_the_precision_that_autocast_chose(pad):
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = padded(x, pad)
    expected = F.pad(x.float(), (pad, pad, pad, pad), mode="reflect")
    assert found.dtype == torch.bfloat16 and torch.equal(found.float(), expected)
    assert padded(x.to("meta"), pad).shape == expected.shape, "as when FLOPs are counted"
