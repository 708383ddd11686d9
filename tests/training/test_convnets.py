import pytest
import torch
from torch import nn
from torch.nn import functional

from tightframe.errors import ArgumentError, ShapeError
from tightframe.nn import FeatureTransform
from tightframe.training import AGD, VGG13, ResNet, backbones


def count(model):
    return sum(p.numel() for p in model.parameters())


def convolutions(model):
    return [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]


@pytest.fixture
def narrow(monkeypatch):
    """Networks of the same layout with an eighth of the channels."""
    monkeypatch.setattr(backbones, "WIDTH", 8)
    monkeypatch.setattr(backbones, "VGG13_WIDTHS", (8, 16, 32, 64, 64))


# --- sizes ---

# Channels that batch norm normalises: the stem, then each stage with its shortcut.
NORMALISED = {
    18: 64 + 4 * 64 + 5 * 128 + 5 * 256 + 5 * 512,
    50: 64
    + (3 * (2 * 64 + 256) + 256)
    + (4 * (2 * 128 + 512) + 512)
    + (6 * (2 * 256 + 1024) + 1024)
    + (3 * (2 * 512 + 2048) + 2048),
}


@pytest.mark.parametrize(("depth", "published", "dim"), [(18, 11_176_512, 512), (50, 23_508_032, 2048)])
def test_resnet_has_as_many_parameters_as_published(depth, published, dim):
    with torch.device("meta"):
        model, bare, small = (ResNet(depth, 3), ResNet(depth, 3, affine=False), ResNet(depth, 3, small_images=True))
        gray = ResNet(depth, 1)
    assert model.out_features == dim
    assert count(model) == published
    assert count(bare) == published - 2 * NORMALISED[depth]
    assert count(small) == published - 64 * 3 * (49 - 9)
    assert count(gray) == published - 64 * 2 * 49


def test_vgg_has_as_many_parameters_as_published():
    # The published network has 133,053,736, of which 123,642,856 in three linear layers and 2,944 in the biases of its
    # convolutions.
    linear = (512 * 49 + 1) * 4096 + 4097 * 4096 + 4097 * 1000
    channels = 2 * (64 + 128 + 256 + 512 + 512)
    with torch.device("meta"):
        model, bare = VGG13(3), VGG13(3, affine=False)
    assert model.out_features == 512
    assert count(model) == 133_053_736 - linear - channels == 9_407_936
    assert count(bare) == count(model) - 2 * channels
    assert len(convolutions(model)) == 10


@pytest.mark.parametrize(
    "make", [lambda **o: ResNet(18, 3, **o), lambda **o: ResNet(50, 3, **o), lambda **o: VGG13(3, **o)]
)
def test_without_affine_batch_norm_agd_has_a_step_for_every_tensor(make, narrow):
    bare = make(affine=False)
    assert {p.ndim for p in bare.parameters()} == {4}
    AGD(bare.parameters())
    assert {p.ndim for p in make().parameters()} == {1, 4}
    assert not any(name.endswith("bias") for name, _ in bare.named_parameters())


# --- layout ---


@pytest.mark.parametrize(
    ("depth", "small", "sides"),
    [(18, False, [56, 28, 14, 7]), (50, False, [56, 28, 14, 7]), (18, True, [224, 112, 56, 28])],
)
def test_resolution_and_channels_of_each_stage(depth, small, sides, narrow):
    with torch.device("meta"):
        model = ResNet(depth, 3, small_images=small)
        seen = []
        for block in model:
            if hasattr(block, "branch"):
                block.register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape[1:])))
        assert model(torch.zeros(1, 3, 224, 224)).shape == (1, model.out_features)
    blocks, wider = {18: ([2] * 4, 1), 50: ([3, 4, 6, 3], 4)}[depth]
    channels = [8 * wider * 2**i for i in range(4)]
    expected = [[(c, s, s)] * n for c, s, n in zip(channels, sides, blocks, strict=True)]
    assert seen == [shape for stage in expected for shape in stage]


def test_where_a_deep_network_halves_the_resolution(narrow):
    strided = [layer.kernel_size for layer in convolutions(ResNet(50, 3)) if layer.stride == (2, 2)]
    assert strided == [(7, 7), *[(3, 3), (1, 1)] * 3]


def test_shortcuts_are_plain_where_the_shape_stays(narrow):
    plain = [isinstance(b.shortcut, nn.Identity) for b in ResNet(18, 3) if hasattr(b, "branch")]
    assert plain == [True, True, False, True, False, True, False, True]
    plain = [isinstance(b.shortcut, nn.Identity) for b in ResNet(50, 3) if hasattr(b, "branch")]
    assert plain == [i not in (0, 3, 7, 13) for i in range(16)]


def layered(maps, convolution, relu=True):
    """A convolution and its batch norm in eval mode at the start, one by one."""
    maps = functional.conv2d(
        maps, convolution.weight, stride=convolution.stride, padding=convolution.kernel_size[0] // 2
    )
    maps = maps / (1 + 1e-5) ** 0.5
    return maps.relu() if relu else maps


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("depth", [18, 50])
def test_the_output_of_a_residual_network(depth, small, narrow):
    torch.manual_seed(0)
    model = ResNet(depth, 2, small_images=small).eval()
    images = torch.randn(3, 2, 21, 32)
    maps = layered(images, model[0])
    if not small:
        maps = functional.max_pool2d(maps, 3, 2, 1)
    for block in (b for b in model if hasattr(b, "branch")):
        branch = maps
        own = convolutions(block.branch)
        assert len(own) == {18: 2, 50: 3}[depth]
        for i, convolution in enumerate(own):
            branch = layered(branch, convolution, relu=i < len(own) - 1)
        shortcut = convolutions(block.shortcut)
        maps = (branch + (layered(maps, shortcut[0], relu=False) if shortcut else maps)).relu()
    expected = maps.mean(dim=(2, 3))
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)
    assert (expected >= 0).all()
    assert expected.std() > 0


def test_the_output_of_vgg(narrow):
    torch.manual_seed(0)
    model = VGG13(2).eval()
    images = torch.randn(3, 2, 40, 70)
    maps = images
    for i, convolution in enumerate(convolutions(model)):
        maps = layered(maps, convolution)
        if i % 2:
            maps = functional.max_pool2d(maps, 2)
    torch.testing.assert_close(model(images), maps.mean(dim=(2, 3)), rtol=1e-4, atol=1e-5)
    assert maps.shape[2:] == (1, 2)


@pytest.mark.parametrize("make", [lambda: ResNet(18, 3), lambda: VGG13(3)])
def test_convolutions_begin_with_the_variance_that_keeps_gradients(make):
    torch.manual_seed(0)
    for layer in convolutions(make()):
        fan_out = layer.out_channels * layer.kernel_size[0] ** 2
        assert layer.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)


# --- wrong arguments ---


@pytest.mark.parametrize("depth", [34, 0, "18", None])
def test_another_depth(depth):
    with pytest.raises(ArgumentError, match="depth must be one of 18, 50, got"):
        ResNet(depth, 3)


@pytest.mark.parametrize("make", [lambda n: ResNet(18, n), VGG13])
@pytest.mark.parametrize("in_channels", [0, 2.5])
def test_channels_that_are_none(make, in_channels):
    with pytest.raises(ArgumentError, match="in_channels must be an integer >= 1"):
        make(in_channels)


@pytest.mark.parametrize("size", [(31, 40), (40, 31)])
def test_images_too_small_for_vgg(size, narrow):
    with pytest.raises(ShapeError, match=r"at least 32 pixels high and wide, got \(1, 3, "):
        VGG13(3)(torch.zeros(1, 3, *size))


def test_a_feature_transform_at_the_end(narrow):
    images = torch.randn(4, 3, 32, 32)
    plain, transformed = ResNet(18, 3), ResNet(18, 3, dim=7)
    transformed.load_state_dict(plain.state_dict(), strict=False)
    end = transformed[-1]
    assert isinstance(end, FeatureTransform)
    assert (end.in_features, end.out_features, transformed.out_features) == (plain.out_features, 7, 7)
    torch.testing.assert_close(transformed.eval()(images), end(plain.eval()(images)))
    assert (transformed.train()(images) < 0).any()


@pytest.mark.parametrize("dim", [0, -1, 2.5])
def test_no_width_for_a_feature_transform(dim):
    with pytest.raises(ArgumentError, match="dim must be an integer >= 1"):
        ResNet(18, 3, dim=dim)
