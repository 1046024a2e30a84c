"""Images: any file to the pixels a viewer would show or a reason, to the model's square, and back to files."""

import io
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, JpegImagePlugin

from rebalance import imaging
from rebalance.imaging import decoding
from rebalance.imaging.decoding import BadImageError, Dimensions

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (2, 3, 3), dtype=np.uint8)
"""2 x 3 pixels, all different, so that every way of turning them shows."""

PIXELS = hnp.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 3])))


def file_bytes(image, file_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def decoded(image, file_format="PNG", **options):
    return imaging.decode(file_bytes(image, file_format, **options))


def photo(side=64):
    """Smooth colours, as in a photograph."""
    ramp = np.linspace(0, 255, side)
    pixels = np.stack([np.tile(ramp, (side, 1)), np.tile(ramp[:, None], (1, side)), np.full((side, side), 90)], -1)
    return pixels.round().astype(np.uint8)


def png_that_declares(width, height):
    """A PNG file of a few bytes whose header promises a picture of this size."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


# Files that cannot be used


def test_empty_file_is_said_to_be_empty():
    with pytest.raises(BadImageError, match=r"^zero-size file$"):
        imaging.decode(b"")


@pytest.mark.parametrize("data", [b"not an image at all", b"\0" * 100, b"<svg></svg>", b"\x89PNG"])
def test_other_content_is_said_to_be_no_image(data):
    with pytest.raises(BadImageError, match=r"^not an image$"):
        imaging.decode(data)


@pytest.mark.parametrize(
    ("file_format", "reason"),
    [("JPEG", "^truncated"), ("PNG", "^truncated"), ("BMP", "^truncated"), ("TIFF", "."), ("WEBP", "."), ("GIF", ".")],
)
def test_half_a_file_is_bad(file_format, reason):
    noise = Image.fromarray(RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    data = file_bytes(noise, file_format)
    with pytest.raises(BadImageError, match=reason):
        imaging.decode(data[: len(data) // 2])
    with pytest.raises(BadImageError, match=reason):
        imaging.probe(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("width", "height"),
    [(100_000, 100_000), (30_000, 30_000), (12_000, 12_000), (imaging.MAX_PIXELS // 1000 + 1, 1000)],
)
def test_decompression_bomb_is_refused_from_its_header(width, height):
    with pytest.raises(BadImageError, match=r"^too large"):
        imaging.decode(png_that_declares(width, height))


def test_float_samples_that_are_not_finite_are_damage():
    values = np.full((3, 3), 0.5, np.float32)
    values[1, 1] = np.nan
    with pytest.raises(BadImageError, match="not finite"):
        decoded(Image.fromarray(values), "TIFF")


@given(data=st.binary(max_size=200))
def test_any_bytes_end_as_an_image_or_a_reason(data):
    try:
        image = imaging.decode(data)
    except BadImageError as error:
        assert str(error)
    else:
        assert image.mode in ("L", "RGB")


VALID = [file_bytes(Image.fromarray(photo(12)), kind) for kind in ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP")]


@given(original=st.sampled_from(VALID), changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6))
def test_damaged_bytes_end_as_an_image_or_a_reason(original, changes):
    data = bytearray(original)
    for place, value in changes:
        data[int(place * (len(data) - 1))] = value
    try:
        image = imaging.decode(bytes(data))
    except BadImageError as error:
        assert str(error)
    else:
        assert image.mode in ("L", "RGB")


def test_decoding_in_threads_leaves_the_warning_filters_as_they_were(monkeypatch):
    displayed = decoding._displayed
    first_inside, second_inside, first_done = threading.Event(), threading.Event(), threading.Event()

    def in_turn(image):
        if threading.current_thread().name == "first":
            first_inside.set()
            assert second_inside.wait(5)
        else:
            second_inside.set()
            assert first_done.wait(5)
        return displayed(image)

    data = file_bytes(Image.new("L", (4, 4)))
    with warnings.catch_warnings():
        before = list(warnings.filters)
        monkeypatch.setattr(decoding, "_displayed", in_turn)
        first = threading.Thread(target=imaging.decode, args=(data,), name="first")
        second = threading.Thread(target=imaging.decode, args=(data,), name="second")
        first.start()
        assert first_inside.wait(5)
        second.start()
        first.join(5)
        first_done.set()
        second.join(5)
        assert not first.is_alive()
        assert not second.is_alive()
        assert list(warnings.filters) == before


def test_large_picture_is_decoded_without_a_warning(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert imaging.probe(file_bytes(Image.new("L", (9, 9)))) == Dimensions(9, 9)


# As a viewer would show it


ORIENTED = {
    1: COLOURS,
    2: COLOURS[:, ::-1],
    3: COLOURS[::-1, ::-1],
    4: COLOURS[::-1],
    5: COLOURS.transpose(1, 0, 2),
    6: np.rot90(COLOURS, -1),
    7: COLOURS[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(COLOURS, 1),
}


@pytest.mark.parametrize("orientation", ORIENTED)
def test_exif_orientation_is_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file_bytes(Image.fromarray(COLOURS), exif=exif)
    assert np.array_equal(np.asarray(imaging.decode(data)), ORIENTED[orientation])
    height, width = ORIENTED[orientation].shape[:2]
    assert imaging.probe(data) == Dimensions(width, height)


def test_gray_stays_gray_and_colour_stays_colour():
    assert np.array_equal(np.asarray(decoded(Image.fromarray(COLOURS))), COLOURS)
    gray = decoded(Image.fromarray(COLOURS[..., 0]))
    assert gray.mode == "L"
    assert np.array_equal(np.asarray(gray), COLOURS[..., 0])


def test_bilevel_becomes_black_and_white():
    image = Image.fromarray(np.array([[True, False, True]]))
    assert image.mode == "1"
    assert np.asarray(decoded(image)).tolist() == [[255, 0, 255]]


@pytest.mark.parametrize("file_format", ["PNG", "GIF", "BMP"])
def test_palette_becomes_its_colours(file_format):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 200])
    image.putdata([0, 1])
    assert np.asarray(decoded(image, file_format)).tolist() == [[[255, 0, 0], [0, 0, 200]]]


def test_transparent_palette_entry_is_laid_over_white():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 200])
    image.putdata([0, 1])
    assert np.asarray(decoded(image, transparency=1)).tolist() == [[[255, 0, 0], [255, 255, 255]]]


def test_transparent_gray_level_is_laid_over_white():
    image = Image.fromarray(np.array([[10, 20]], np.uint8))
    shown = decoded(image, transparency=20)
    assert np.asarray(shown.convert("L")).tolist() == [[10, 255]]


def test_alpha_is_laid_over_white():
    rgba = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [0, 0, 255, 51]]], np.uint8)
    assert np.asarray(decoded(Image.fromarray(rgba))).tolist() == [[[200, 100, 0], [255, 255, 255], [204, 204, 255]]]


def test_gray_with_alpha_is_laid_over_white():
    pixels = np.array([[[50, 255], [50, 0], [0, 51]]], np.uint8)
    shown = decoded(Image.fromarray(pixels, "LA")).convert("L")
    assert np.asarray(shown).tolist() == [[50, 255, 204]]


@pytest.mark.parametrize(
    ("cmyk", "rgb"),
    [((0, 0, 0, 0), (255, 255, 255)), ((0, 255, 255, 0), (255, 0, 0)), ((0, 0, 0, 255), (0, 0, 0))],
    ids=["white", "red", "black"],
)
@pytest.mark.parametrize("file_format", ["TIFF", "JPEG"])
def test_cmyk_becomes_rgb(cmyk, rgb, file_format):
    shown = np.asarray(decoded(Image.new("CMYK", (16, 16), cmyk), file_format))
    assert shown.shape == (16, 16, 3)
    assert np.abs(shown.astype(int) - rgb).max() <= 3


@pytest.mark.parametrize("file_format", ["TIFF", "PNG"])
def test_16_bit_samples_keep_their_share_of_the_range(file_format):
    levels = np.arange(256, dtype=np.uint16)
    shown = decoded(Image.fromarray(levels[None] * 257), file_format)
    assert shown.mode == "L"
    assert np.array_equal(np.asarray(shown), levels[None])


def test_dark_16_bit_image_stays_dark():
    assert np.asarray(decoded(Image.fromarray(np.full((2, 2), 200, np.uint16)), "TIFF")).tolist() == [[1, 1], [1, 1]]


def test_16_bit_big_endian_is_read_as_such():
    values = np.array([[0, 32896, 65535]], np.uint16)
    image = Image.frombytes("I;16B", (3, 1), values.astype(">u2").tobytes())
    assert np.asarray(decoded(image, "TIFF")).tolist() == [[0, 128, 255]]


def test_float_samples_between_0_and_1_fill_the_range():
    values = np.array([[0, 0.5, 1]], np.float32)
    assert np.asarray(decoded(Image.fromarray(values), "TIFF")).tolist() == [[0, 128, 255]]


def test_float_samples_up_to_255_are_taken_as_they_are():
    values = np.array([[0, 12.4, 254.6, 255]], np.float32)
    assert np.asarray(decoded(Image.fromarray(values), "TIFF")).tolist() == [[0, 12, 255, 255]]


def test_first_frame_of_an_animation_is_shown():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    shown = decoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert shown.getpixel((0, 0)) == (255, 0, 0)


# The model's square


@pytest.mark.parametrize("square", ["crop", "pad", "squash"])
@given(
    width=st.integers(1, 60), height=st.integers(1, 60), size_px=st.integers(8, 24), channels=st.sampled_from([1, 3]),
    mode=st.sampled_from(["L", "RGB"]),
)  # fmt: skip
def test_square_has_its_shape_and_a_plain_image_its_colour(square, width, height, size_px, channels, mode):
    pixels = imaging.to_square(Image.new(mode, (width, height), "#646464"), size_px, channels, square)
    assert pixels.shape == (size_px, size_px, channels)
    assert pixels.dtype == np.uint8
    assert (pixels == 100).all()


@pytest.mark.parametrize("square", ["crop", "pad", "squash"])
@pytest.mark.parametrize("size", [(1, 400), (400, 1)])
def test_sliver_becomes_a_square(square, size):
    assert imaging.to_square(Image.new("RGB", size), 8, 3, square).shape == (8, 8, 3)


@pytest.mark.parametrize("square", ["crop", "pad", "squash"])
def test_square_of_the_right_size_is_unchanged(square):
    pixels = RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert np.array_equal(imaging.to_square(Image.fromarray(pixels), 16, 3, square), pixels)


def test_crop_takes_the_centre():
    stripes = np.repeat(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8), 10, axis=1).repeat(10, axis=0)
    assert (imaging.to_square(Image.fromarray(stripes), 10, 3, "crop") == (0, 255, 0)).all()
    upright = Image.fromarray(stripes.transpose(1, 0, 2))
    assert (imaging.to_square(upright, 10, 3, "crop") == (0, 255, 0)).all()


def test_pad_keeps_the_whole_image_between_bands_of_the_borders_mean():
    halves = np.zeros((10, 20, 1), np.uint8)
    halves[:, 10:] = 200
    pixels = imaging.to_square(Image.fromarray(halves[..., 0]), 20, 1, "pad")
    assert np.array_equal(pixels[5:15], halves)
    assert (pixels[:5] == 100).all()
    assert (pixels[15:] == 100).all()


def test_pad_of_a_colour_image_takes_the_mean_of_every_channel():
    halves = np.zeros((10, 20, 3), np.uint8)
    halves[:, 10:] = (200, 100, 40)
    pixels = imaging.to_square(Image.fromarray(halves), 20, 3, "pad")
    assert (pixels[:5] == (100, 50, 20)).all()


def test_squash_keeps_both_ends():
    halves = np.zeros((10, 20), np.uint8)
    halves[:, 10:] = 200
    pixels = imaging.to_square(Image.fromarray(halves), 10, 1, "squash")[..., 0]
    assert (pixels[:, :3] == 0).all()
    assert (pixels[:, -3:] == 200).all()


def test_channels_are_added_and_taken_away():
    gray = imaging.to_square(Image.new("L", (9, 9), 77), 8, 3, "crop")
    assert (gray == 77).all()
    luma = imaging.to_square(Image.new("RGB", (9, 9), (255, 0, 0)), 8, 1, "crop")
    assert luma.shape == (8, 8, 1)
    assert (luma == 76).all()


# Tensors


def test_all_values_come_back_from_float_unchanged():
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    floats = imaging.to_float(torch.from_numpy(pixels))
    assert np.array_equal(imaging.to_pixels(floats), pixels)
    assert floats.min() == -1
    assert floats.max() == 1


def test_float_images_have_channels_first():
    pixels = RNG.integers(0, 256, (2, 5, 4, 3), dtype=np.uint8)
    floats = imaging.to_float(torch.from_numpy(pixels))
    assert floats.shape == (2, 3, 5, 4)
    assert floats.dtype == torch.float32
    assert floats.is_contiguous(memory_format=torch.channels_last)
    assert floats[1, 2, 3, 0] == pytest.approx(pixels[1, 3, 0, 2] / 127.5 - 1)
    assert np.array_equal(imaging.to_pixels(floats), pixels)


def test_values_outside_the_range_are_cut_and_the_input_is_not_changed():
    floats = torch.tensor([-3.0, -1.001, 1.001, 7.0]).reshape(1, 1, 2, 2)
    kept = floats.clone()
    assert imaging.to_pixels(floats).ravel().tolist() == [0, 0, 255, 255]
    assert torch.equal(floats, kept)


def test_reduced_precision_and_gradients_do_not_matter():
    floats = torch.tensor([[[[-1.0, 0.5]]]], requires_grad=True)
    assert imaging.to_pixels(floats).ravel().tolist() == imaging.to_pixels(floats.bfloat16()).ravel().tolist()


# Encoding


@given(pixels=PIXELS)
def test_png_is_lossless(pixels):
    again = np.asarray(imaging.decode(imaging.encode(pixels, "png", 95))).reshape(pixels.shape)
    assert np.array_equal(again, pixels)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("file_format", "magic"), [("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP")])
def test_encoded_image_has_its_format_size_and_look(file_format, magic, channels):
    pixels = photo()[..., :channels]
    data = imaging.encode(pixels, file_format, 95)
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.format == magic
    shown = np.asarray(imaging.decode(data).convert("L" if channels == 1 else "RGB")).reshape(pixels.shape)
    assert np.abs(shown.astype(int) - pixels).mean() < 4


@pytest.mark.parametrize("file_format", ["jpg", "png", "webp"])
def test_encoding_again_gives_the_same_bytes_without_metadata(file_format):
    data = imaging.encode(photo(), file_format, 90)
    assert imaging.encode(photo().copy(), file_format, 90) == data
    with Image.open(io.BytesIO(data)) as opened:
        assert not opened.getexif()
        assert "icc_profile" not in opened.info
        assert "comment" not in opened.info


@pytest.mark.parametrize("file_format", ["jpg", "webp"])
def test_quality_costs_bytes(file_format):
    noise = RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    sizes = [len(imaging.encode(noise, file_format, quality)) for quality in (10, 50, 95)]
    assert sizes == sorted(set(sizes))


def test_high_quality_jpg_keeps_full_colour_resolution():
    with Image.open(io.BytesIO(imaging.encode(photo(), "jpg", 95))) as high:
        assert JpegImagePlugin.get_sampling(high) == 0
    with Image.open(io.BytesIO(imaging.encode(photo(), "jpg", 80))) as low:
        assert JpegImagePlugin.get_sampling(low) == 2


@pytest.mark.parametrize("file_format", ["jpg", "png", "webp"])
def test_encoder_version_names_a_library_and_its_number(file_format):
    name, _, version = imaging.encoder_version(file_format).partition(" ")
    assert name.isidentifier()
    assert version[0].isdigit()


# Grids


def test_grid_places_images_in_rows_on_white():
    red, blue = np.full((4, 6, 3), (255, 0, 0), np.uint8), np.full((4, 6, 3), (0, 0, 255), np.uint8)
    sheet = np.asarray(imaging.grid([[red, blue], [blue]], gap_px=3))
    assert sheet.shape == (3 + 2 * (4 + 3), 3 + 2 * (6 + 3), 3)
    expected = np.full_like(sheet, 255)
    expected[3:7, 3:9], expected[3:7, 12:18], expected[10:14, 3:9] = red, blue, blue
    assert np.array_equal(sheet, expected)


def test_grid_enlarges_small_images_by_a_whole_factor():
    tile = RNG.integers(0, 256, (8, 8, 1), dtype=np.uint8)
    sheet = np.asarray(imaging.grid([[tile]], gap_px=0, min_side_px=20))
    assert sheet.shape == (24, 24, 3)
    assert np.array_equal(sheet[..., 0], tile[..., 0].repeat(3, 0).repeat(3, 1))


def test_grid_never_shrinks_images():
    assert imaging.grid([[photo()]], gap_px=0, min_side_px=10).size == (64, 64)


def test_png_bytes_of_a_picture_read_back():
    sheet = imaging.grid([[photo()]])
    assert np.array_equal(np.asarray(imaging.decode(imaging.png_bytes(sheet))), np.asarray(sheet))
