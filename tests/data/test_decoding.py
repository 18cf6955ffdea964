"""Every kind of image file is read as documented or refused with its path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pictures import picture, write_bomb
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Resize

from tl_lightning.data.decoding import BadImageError, decode_image, image_shape, read_rgb


def decoded(path: Path, size: int = 16, channels: int = 3) -> np.ndarray:
    return decode_image(path, size, channels).transpose(1, 2, 0).astype(int)


def test_resizing_is_that_of_torchvision(tmp_path: Path) -> None:
    for seed, size in enumerate([(50, 31), (31, 50), (17, 16), (16, 200), (9, 9), (300, 301)]):
        image = picture(seed, size)
        image.save(tmp_path / "a.png")
        reference = Compose([Resize(16), CenterCrop(16)])(image)
        assert np.abs(decoded(tmp_path / "a.png") - np.asarray(reference).astype(int)).max() <= 1, size


def test_cmyk_and_palette_become_rgb(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), (200, 40, 90)).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    assert np.abs(decoded(tmp_path / "cmyk.jpg") - (200, 40, 90)).max() <= 3
    Image.new("RGB", (16, 16), (204, 51, 102)).convert("P").save(tmp_path / "palette.gif")
    assert (decoded(tmp_path / "palette.gif") == (204, 51, 102)).all()


def test_transparent_pixels_lie_over_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    image.paste((10, 20, 30, 255), (0, 0, 8, 16))
    image.save(tmp_path / "rgba.png")
    pixels = decoded(tmp_path / "rgba.png")
    assert (pixels[:, :8] == (10, 20, 30)).all()
    assert (pixels[:, 8:] == 255).all()
    image.convert("LA").save(tmp_path / "la.png")
    assert (decoded(tmp_path / "la.png", channels=1)[:, 8:] == 255).all()


def test_sixteen_bit_grey_is_scaled(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    Image.fromarray(values).save(tmp_path / "deep.tif")
    for name in ("deep.png", "deep.tif"):
        assert np.abs(decoded(tmp_path / name)[..., 0] - values / 257).max() <= 0.51, name


def test_float_pixels_are_zero_to_one_or_refused(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "unit.tif")
    assert np.abs(decoded(tmp_path / "unit.tif")[..., 0] - values * 255).max() <= 0.51
    Image.fromarray(values * 7).save(tmp_path / "wild.tif")
    with pytest.raises(BadImageError, match=r"float pixels outside 0\.\.1"):
        decode_image(tmp_path / "wild.tif", 16)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = picture(1, (32, 16))
    exif = image.getexif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    image.save(tmp_path / "turned.jpg", exif=exif, quality=98)
    image.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "plain.jpg", quality=98)
    assert image_shape(tmp_path / "turned.jpg") == (16, 32)
    assert np.abs(decoded(tmp_path / "turned.jpg") - decoded(tmp_path / "plain.jpg")).mean() < 3


def test_of_an_animation_the_first_frame_is_used(tmp_path: Path) -> None:
    red, blue = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (16, 16), "blue")
    red.save(tmp_path / "two.gif", save_all=True, append_images=[blue])
    assert (decoded(tmp_path / "two.gif") == (255, 0, 0)).all()


def test_the_content_decides_not_the_ending(tmp_path: Path) -> None:
    picture(1).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    assert decoded(tmp_path / "a.jpg").shape == (16, 16, 3)


def test_one_pixel_is_an_image(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (9, 8, 7)).save(tmp_path / "one.png")
    assert (decoded(tmp_path / "one.png") == (9, 8, 7)).all()


def test_grey_is_one_channel_when_wanted(tmp_path: Path) -> None:
    picture(1).convert("L").save(tmp_path / "grey.png")
    assert decode_image(tmp_path / "grey.png", 16, channels=1).shape == (1, 16, 16)
    pixels = decoded(tmp_path / "grey.png")
    assert (pixels[..., 0] == pixels[..., 2]).all()


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty"), (b"not an image at all", "not a JPEG"), (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not a JPEG")],
)
def test_what_is_no_image_is_refused_with_its_path(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(BadImageError, match=reason) as caught:
        decode_image(path, 16)
    assert str(path) in str(caught.value)
    with pytest.raises(BadImageError):
        image_shape(path)


def test_a_decompression_bomb_is_refused_unread(tmp_path: Path) -> None:
    write_bomb(tmp_path / "bomb.png", 20_000, 20_000)
    with pytest.raises(BadImageError, match="pixels"):
        decode_image(tmp_path / "bomb.png", 16)
    write_bomb(tmp_path / "large.png", 10_000, 9_500)  # below Pillow's error, above its warning
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(BadImageError, match="10000 x 9500 pixels is more than"),
    ):
        decode_image(tmp_path / "large.png", 16)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadImageError, match=r"gone\.png: No such file"):
        decode_image(tmp_path / "gone.png", 16)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL.*")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), kind=st.sampled_from(["png", "jpg", "gif", "tif", "bmp", "webp"]))
def test_damaged_files_are_read_or_refused_never_worse(tmp_path: Path, data: st.DataObject, kind: str) -> None:
    path = tmp_path / f"damaged.{kind}"
    picture(1, (40, 40)).save(path)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(1, len(content) - 1))]
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))
    try:
        shape = decode_image(path, 16).shape
    except BadImageError as error:
        message = str(error)
    else:
        assert shape == (3, 16, 16)
        return
    assert str(path) in message
    assert "\n" not in message


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_a_truncated_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"cut.{kind}"
    picture(1, (64, 64)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BadImageError, match="truncated"):
        decode_image(path, 16)


@pytest.mark.parametrize(("name", "format"), [("turned.tif", "TIFF"), ("phone.jpg", "MPO"), ("turned.webp", "WEBP")])
def test_exif_orientation_is_that_of_every_format(tmp_path: Path, name: str, format: str) -> None:
    """A phone's .jpg is often an MPO, and Pillow turns a TIFF by itself."""
    image = Image.new("RGB", (32, 16), "blue")
    image.paste("red", (0, 0, 16, 16))
    exif = image.getexif()
    exif[0x0112] = 6
    several = {"save_all": True, "append_images": [image]} if format == "MPO" else {}
    image.save(tmp_path / name, format=format, exif=exif, **several)
    assert image_shape(tmp_path / name) == (32, 16)
    assert read_rgb(tmp_path / name).size == (16, 32)
    top, bottom = decoded(tmp_path / name)[1].mean(0), decoded(tmp_path / name)[-2].mean(0)
    assert top[0] > 200 > 50 > top[2]
    assert bottom[2] > 200 > 50 > bottom[0]
