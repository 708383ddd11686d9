import pytest
import torch

from tests.training.models import quiet
from tightframe.errors import ArgumentError, DtypeError, ShapeError
from tightframe.training import ImageTransform

pytestmark = quiet
COLOURS = {"mean": [0.5, 0.25, 0.0], "std": [0.5, 0.25, 2.0]}


def plain(**options):
    """A transform that leaves pixel values in [0, 1] as they are."""
    return ImageTransform(mean=[0.0], std=[1.0], **options)


def places(n=1, height=6, width=8):
    """Images whose pixels say where they are: 10 * row + column + 1."""
    image = 10.0 * torch.arange(height).view(-1, 1) + torch.arange(width) + 1
    return image.expand(n, 1, height, width)


def test_values_are_scaled_and_normalised_by_channel():
    images = torch.tensor([0, 255, 51], dtype=torch.uint8).view(3, 1, 1).expand(2, 3, 4, 4)
    seen = ImageTransform(**COLOURS).eval()(images)
    assert seen.dtype == torch.float32
    assert seen.shape == (2, 3, 4, 4)
    torch.testing.assert_close(seen[1, :, 2, 3], torch.tensor([-1.0, 3.0, 0.1]))


def test_floating_point_images_are_taken_to_be_in_0_to_1():
    images = torch.tensor([0.0, 1.0, 0.2]).view(1, 3, 1, 1)
    seen = ImageTransform(**COLOURS).eval()(images).flatten()
    torch.testing.assert_close(seen, torch.tensor([-1.0, 3.0, 0.1]))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.float64])
def test_the_result_has_the_dtype_of_the_module(dtype):
    images = torch.ones(1, 3, 2, 2).to(dtype)
    assert ImageTransform(**COLOURS)(images).dtype == torch.float32
    assert ImageTransform(**COLOURS).double()(images).dtype == torch.float64


def test_evaluation_takes_the_middle_and_draws_nothing():
    before = torch.get_rng_state()
    images = places()
    for padding in (0, 3):
        assert torch.equal(plain(padding=padding).eval()(images), images)
        middle = plain(crop=4, padding=padding).eval()(images)
        assert torch.equal(middle, images[:, :, 1:5, 2:6])
    assert torch.equal(torch.get_rng_state(), before)


def test_what_lies_outside_the_image_is_black():
    white = torch.full((1, 1, 2, 2), 255, dtype=torch.uint8)
    seen = ImageTransform([0.5], [0.5], crop=4, padding=1).eval()(white)[0, 0]
    assert seen.tolist() == [[-1] * 4, [-1, 1, 1, -1], [-1, 1, 1, -1], [-1] * 4]


def test_each_image_has_a_crop_and_a_mirror_of_its_own():
    n, size = 4000, 4
    torch.manual_seed(0)
    seen = plain(crop=size)(places(n)).squeeze(1)
    mirrored = seen[:, 0, 1] < seen[:, 0, 0]
    assert mirrored.float().mean() == pytest.approx(0.5, abs=0.04)
    seen = torch.where(mirrored.view(-1, 1, 1), seen.flip(2), seen)
    corner = seen[:, 0, 0] - 1
    row, column = (corner // 10).long(), (corner % 10).long()
    # A crop is a stretch of rows and columns of the image, whole and in order.
    expected = 10.0 * (row.view(-1, 1, 1) + torch.arange(size).view(-1, 1)) + column.view(-1, 1, 1)
    assert torch.equal(seen, expected + torch.arange(size) + 1)
    cells = torch.bincount(row * 10 + column + 5 * mirrored)
    assert cells.numel() == 30
    assert cells.float().div(n).sub(1 / 30).abs().max() < 0.02


def test_padding_moves_the_image_by_up_to_so_many_pixels():
    torch.manual_seed(0)
    seen = plain(padding=2, flip=False)(places(500, 3, 3)).squeeze(1)
    assert seen.shape == (500, 3, 3)
    corners = set(seen[:, 0, 0].long().tolist())
    assert corners == {0, 1, 2, 3, 11, 12, 13, 21, 22, 23}
    assert (seen == places(1, 3, 3)[0]).all(dim=(1, 2)).float().mean() == pytest.approx(1 / 25, abs=0.03)


def test_without_crop_padding_and_mirror_training_is_evaluation():
    images = torch.randint(256, (5, 3, 4, 6), dtype=torch.uint8)
    transform = ImageTransform(**COLOURS, flip=False)
    assert torch.equal(transform(images), transform.eval()(images))


def test_channels_stay_together():
    images = torch.cat([places(50), 2 * places(50)], dim=1)
    seen = ImageTransform([0.0, 0.0], [1.0, 1.0], crop=3, padding=1)(images)
    assert torch.equal(seen[:, 1], 2 * seen[:, 0])


def test_one_seed_gives_one_augmentation():
    def seen(seed):
        torch.manual_seed(seed)
        return plain(crop=3)(places(20))

    assert torch.equal(seen(1), seen(1))
    assert not torch.equal(seen(1), seen(2))


def test_images_are_left_as_they_are():
    images = places(3).clone()
    plain(crop=3, padding=1)(images)
    assert torch.equal(images, places(3))


def test_it_has_nothing_to_train_or_save():
    transform = ImageTransform(**COLOURS)
    assert not list(transform.parameters())
    assert not transform.state_dict()
    assert "crop=None, padding=0, flip=True" in repr(transform)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"mean": [], "std": []}, "got 0 and 0 numbers"),
        ({"mean": [0.1], "std": [1.0, 1.0]}, "got 1 and 2 numbers"),
        ({"mean": [float("nan")], "std": [1.0]}, "mean must be finite"),
        ({"mean": [0.0], "std": [0.0]}, "std must be finite numbers > 0"),
        ({"mean": [0.0], "std": [-1.0]}, "std must be"),
        ({"mean": [0.0], "std": [float("inf")]}, "std must be"),
        ({"mean": [0.0], "std": [1.0], "crop": 0}, "crop must be"),
        ({"mean": [0.0], "std": [1.0], "padding": -1}, "padding must be"),
    ],
)
def test_options_out_of_range(options, text):
    with pytest.raises(ArgumentError, match=text):
        ImageTransform(**options)


@pytest.mark.parametrize(
    ("images", "error", "text"),
    [
        (torch.zeros(2, 3, 4, 4, dtype=torch.int64), DtypeError, "uint8 or floating-point, got torch.int64"),
        (torch.zeros(2, 1, 4, 4), ShapeError, r"with C = 3, .* got \(2, 1, 4, 4\)"),
        (torch.zeros(3, 4, 4), ShapeError, r"shape \(B, C, H, W\)"),
        (torch.zeros(2, 3, 4, 9), ShapeError, r"at least crop = 7 pixels .* padding = 1, got \(2, 3, 4, 9\)"),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_images_that_cannot_be_transformed(images, error, text, training):
    with pytest.raises(error, match=text):
        ImageTransform(**COLOURS, crop=7, padding=1).train(training)(images)
