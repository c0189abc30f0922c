"""The quirks of real files: palettes, EXIF rotation, damage, odd modes, class lists."""

import hashlib
import io
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from pipeline import datasets
from pipeline.datasets.scan import difference_hash, look, near_pairs, scan, shared_images
from pipeline.errors import UserError
from pipeline.images import reading
from pipeline.images.classes import CLASS_SETS, IGNORE, ClassSet
from pipeline.images.reading import read_native
from tests import fakes

CLASSES = CLASS_SETS["camvid11"]
TABLE = datasets.table("camvid", Path(), CLASSES)


def photo(path: Path, **save: object) -> Path:
    """A smooth picture, so that lossy formats keep it, with all four corners different."""
    rows, columns = np.mgrid[0:40, 0:60]
    pixels = np.stack([rows * 6, columns * 4, 255 - rows * 3 - columns], axis=-1).astype(np.uint8)
    Image.fromarray(pixels).save(path, **save)
    return path


def test_palette_masks_give_their_numbers_not_their_colours(tmp_path: Path) -> None:
    ids = np.arange(12).reshape(3, 4)
    flat, palette = fakes.mask(tmp_path / "flat.png", ids), fakes.mask(tmp_path / "palette.png", ids, palette=True)
    with Image.open(palette) as file:
        assert file.mode == "P"
    assert reading.read_mask(palette, TABLE).tolist() == reading.read_mask(flat, TABLE).tolist()
    assert read_native(palette).tolist() == ids.tolist()


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = photo(tmp_path / f"turned{suffix}", exif=exif)
    with Image.open(path) as file:
        upright = np.asarray(ImageOps.exif_transpose(file).convert("RGB")).astype(int)
    image = reading.read_image(path)
    assert image.shape == ((60, 40, 3) if orientation >= 5 else (40, 60, 3))
    assert np.abs(image - upright).max() <= 2  # two JPEG decoders may round differently


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_any_image_mode_becomes_three_channels(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    Image.new("RGB", (5, 4), "white").convert(mode).save(path)
    assert reading.read_image(path).tolist() == np.full((4, 5, 3), 255).tolist()


def test_sixteen_bit_grey_keeps_its_high_byte(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 0x1234, 0xFFFF]], np.uint16)).save(tmp_path / "deep.png")
    assert reading.read_image(tmp_path / "deep.png")[0, :, 0].tolist() == [0, 0x12, 0xFF]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tif"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_an_image_cut_short_is_an_error_that_names_it(tmp_path: Path, suffix: str, share: float) -> None:
    path = fakes.image(tmp_path / f"cut{suffix}", np.random.default_rng(0))
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match=rf"the image .*cut\{suffix} is (cut short|empty)"):
        reading.read_image(path)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_real_frame_cut_short_is_an_error(shared_data: Path, tmp_path: Path, suffix: str) -> None:
    source = min((shared_data / "camvid/train").glob("*.jpg")) if suffix == ".jpg" else _frame(shared_data, "images")
    data = source.read_bytes()
    for missing in (2, 20, len(data) // 10, len(data) // 2, len(data) - 30):
        path = tmp_path / f"cut{suffix}"
        path.write_bytes(data[:-missing])
        with pytest.raises(UserError, match="is cut short"):
            reading.read_image(path)


def _frame(shared_data: Path, folder: str) -> Path:
    return shared_data / f"gta5/{folder}/00002.png"


def test_no_image_at_all(tmp_path: Path) -> None:
    (tmp_path / "page.png").write_text("<html>404</html>")
    with pytest.raises(UserError, match=r"page\.png is cut short, damaged or no image \(16 bytes\): fetch it again"):
        reading.read_image(tmp_path / "page.png")
    with pytest.raises(UserError, match=r"gone\.png cannot be read: No such file"):
        reading.read_image(tmp_path / "gone.png")
    with pytest.raises(UserError, match=r"gone\.png cannot be read: No such file"):
        reading.read_mask(tmp_path / "gone.png", TABLE)


def _encoded(picture: Image.Image, suffix: str, path: Path, **save: object) -> Path:
    path = path / f"file{suffix}"
    picture.save(path, **save)
    return path


GREY = np.tile(np.linspace(0, 255, 60).astype(np.uint8), (40, 1))
COLOURED = np.stack([GREY, 255 - GREY, GREY // 2], axis=-1)


@pytest.mark.parametrize(
    ("picture", "suffix", "save"),
    [
        (np.dstack([COLOURED, np.zeros_like(GREY)]), ".png", {}),  # all of it transparent
        (np.dstack([COLOURED, np.zeros_like(GREY)]), ".tif", {}),
        (np.dstack([COLOURED, np.zeros_like(GREY)]), ".webp", {"lossless": True, "exact": True}),
        *((COLOURED, suffix, {}) for suffix in (".ppm", ".bmp", ".tif", ".gif")),
    ],
)
def test_colours_are_those_of_the_file(tmp_path: Path, picture: np.ndarray, suffix: str, save: dict) -> None:
    image = reading.read_image(_encoded(Image.fromarray(picture), suffix, tmp_path, **save))
    np.testing.assert_array_equal(image, COLOURED)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_used_or_the_image_is_refused(tmp_path: Path, suffix: str, channels: int) -> None:
    picture = GREY if channels == 1 else COLOURED[..., ::-1]
    path = tmp_path / f"deep{suffix}"
    path.write_bytes(cv2.imencode(suffix, picture.astype(np.uint16) * 257)[1].tobytes())
    image = reading.read_image(path)
    np.testing.assert_array_equal(image, COLOURED if channels == 3 else GREY[..., None].repeat(3, 2))
    path.write_bytes(cv2.imencode(suffix, picture.astype(np.uint16) * 16)[1].tobytes())
    with pytest.raises(UserError, match=rf"deep\{suffix} has 16 bits, but nothing above 4080 .*with 12 bits"):
        reading.read_image(path)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_numbers_of_unknown_scale_are_refused(tmp_path: Path, dtype: type) -> None:
    path = _encoded(Image.fromarray(GREY.astype(dtype)), ".tif", tmp_path)
    with pytest.raises(UserError, match=f"holds numbers of the type {np.dtype(dtype)}, of unknown scale"):
        reading.read_image(path)


@pytest.mark.parametrize(("suffix", "save"), [(".gif", {}), (".webp", {"lossless": True}), (".png", {}), (".tif", {})])
def test_several_pictures_in_a_file_are_refused(tmp_path: Path, suffix: str, save: dict) -> None:
    first, second = Image.fromarray(COLOURED), Image.fromarray(255 - COLOURED)
    path = _encoded(first, suffix, tmp_path, save_all=True, append_images=[second], **save)
    with pytest.raises(UserError, match=rf"file\{suffix} holds several pictures"):
        reading.read_image(path)


def test_smaller_copies_in_a_file_do_not_matter(tmp_path: Path) -> None:
    copy = Image.fromarray(COLOURED[::2, ::2])
    copy.encoderinfo = {"tiffinfo": {254: 1}}  # as cloud-optimised GeoTIFFs have it
    path = _encoded(Image.fromarray(COLOURED), ".tif", tmp_path, save_all=True, append_images=[copy])
    np.testing.assert_array_equal(reading.read_image(path), COLOURED)


def test_a_heic_picture_in_disguise_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(50))
    with pytest.raises(UserError, match=r"a\.jpg is a HEIC picture, whatever its suffix"):
        reading.read_image(tmp_path / "a.jpg")


def test_large_masks_are_read_and_too_large_pictures_are_named(tmp_path: Path) -> None:
    mask = Image.new("L", (20000, 9500), 3)  # 190 megapixels, more than twice what Pillow warns of
    assert read_native(_encoded(mask, ".png", tmp_path, compress_level=1)).shape == (9500, 20000)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = chunk(b"IHDR", (40000).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0]))
    path = tmp_path / "huge.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b""))
    for read in (reading.read_image, read_native):
        with pytest.raises(UserError, match=r"huge\.png has 40000x40000 pixels, more than 2\^30"):
            read(path)


def test_an_image_that_is_not_what_it_was_is_refused(tmp_path: Path) -> None:
    path = photo(tmp_path / "a.png")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert reading.read_image(path, digest).shape == (40, 60, 3)
    fakes.image(path, np.random.default_rng(0))
    with pytest.raises(UserError, match=r"a\.png was changed since `prepare` looked at it: put it back, or run `dvc"):
        reading.read_image(path, digest)


IDS = np.arange(12, dtype=np.uint8).reshape(3, 4)


@pytest.mark.parametrize(
    ("picture", "suffix", "save"),
    [
        (Image.fromarray(IDS.astype(np.uint16)), ".png", {}),
        (Image.fromarray(IDS.astype(np.int32)), ".tif", {}),
        *((Image.fromarray(IDS), suffix, {}) for suffix in (".bmp", ".tif", ".pgm")),
        (Image.frombytes("P", (4, 3), IDS.tobytes()), ".png", {"transparency": 3}),
    ],
)
def test_ids_are_read_from_what_holds_them_whole(tmp_path: Path, picture: Image.Image, suffix: str, save: dict) -> None:
    if picture.mode == "P":
        picture.putpalette(range(256))
    assert read_native(_encoded(picture, suffix, tmp_path, **save)).tolist() == IDS.tolist()


@pytest.mark.parametrize(
    ("picture", "suffix", "save", "message"),
    [
        (IDS, ".jpg", {}, "is JPEG, a format that changes or renumbers ids"),
        (IDS, ".webp", {}, "is WEBP, a format that changes"),
        (IDS, ".webp", {"lossless": True}, "is WEBP, a format that changes"),
        (IDS, ".gif", {}, "is GIF, a format that changes"),
        (IDS, ".tif", {"compression": "jpeg"}, "is TIFF with jpeg inside"),
        (IDS.astype(np.uint16) * 1000, ".png", {}, "holds numbers up to 11000, and ids end at 255"),
        (IDS.astype(np.float32), ".tif", {}, "is of mode F"),
        (np.dstack([IDS] * 3), ".png", {}, "it shows colours or several numbers, not ids"),
    ],
)
def test_what_does_not_hold_ids_is_refused(
    tmp_path: Path, picture: np.ndarray, suffix: str, save: dict, message: str
) -> None:
    path = _encoded(Image.fromarray(picture), suffix, tmp_path, **save)
    with pytest.raises(UserError, match=message) as error:
        read_native(path)
    assert "save the class ids as an 8-bit greyscale PNG" in str(error.value).replace("Save", "save")
    path.rename(tmp_path / "renamed.png")  # the content tells, not the name
    with pytest.raises(UserError, match=message):
        read_native(tmp_path / "renamed.png")


def test_a_mask_of_fewer_greys_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mask.pgm").write_bytes(b"P5 4 3 18\n" + IDS.tobytes())  # Pillow would stretch 18 to 255
    with pytest.raises(UserError, match="is greyscale of less than 8 bits"):
        read_native(tmp_path / "mask.pgm")


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("turn", range(2, 9))
def test_a_turn_that_image_and_mask_share_is_made_in_both(tmp_path: Path, suffix: str, turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    grey = np.random.default_rng(0).integers(0, 12, (6, 9)).astype(np.uint8)
    image, mask = (tmp_path / f"{name}{suffix}" for name in ("image", "mask"))
    Image.fromarray(grey[..., None].repeat(3, 2)).save(image, exif=exif)
    Image.fromarray(grey).save(mask, exif=exif)
    np.testing.assert_array_equal(reading.read_image(image)[..., 0], read_native(mask))
    found = look(datasets.Sample("a", image, mask), TABLE)
    assert (found.faults, found.doubt) == ((), "")


def test_a_turn_that_only_one_of_image_and_mask_has_is_named(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # by 180 degrees: sizes do not tell
    ids = np.random.default_rng(0).integers(0, 12, (40, 60)).astype(np.uint8)
    image, mask = photo(tmp_path / "a.jpg", exif=exif), fakes.mask(tmp_path / "a.png", ids)
    found = look(datasets.Sample("a", image, mask), TABLE)
    assert (found.faults, found.doubt) == ((), f"{image} is turned by its EXIF tag, its mask is not")
    image = photo(tmp_path / "b.jpg")
    Image.fromarray(ids).save(mask, exif=exif)
    (fault,) = look(datasets.Sample("b", image, mask), TABLE).faults
    assert fault == ("turned apart", f"the mask {mask} is turned by its EXIF tag, its image is not so")
    exif[0x0112] = 6
    Image.fromarray(ids).save(mask, exif=exif)
    (fault,) = look(datasets.Sample("b", image, mask), TABLE).faults
    assert "40x60, its image" in fault.text
    assert fault.text.endswith("60x40 (the mask is turned by its EXIF tag, the image is not)")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_mask_cut_short_is_an_error_that_names_it(tmp_path: Path, share: float) -> None:
    path = fakes.mask(tmp_path / "cut.png", np.random.default_rng(0).integers(0, 12, (50, 60)))
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match=r"the mask .*cut\.png is (cut short|empty)"):
        reading.read_mask(path, TABLE)


@pytest.mark.parametrize("kind", ["mask", "image"])
def test_whatever_is_damaged_only_a_user_error_comes_out(tmp_path: Path, kind: str) -> None:
    """Two bytes are changed: a decoder may survive it, but only our error may come out."""
    rng = np.random.default_rng(0)
    for suffix in (".png",) if kind == "mask" else (".png", ".jpg", ".webp", ".bmp", ".tif"):
        path = tmp_path / f"damaged{suffix}"
        fakes.mask(path, rng.integers(0, 12, (9, 9))) if kind == "mask" else fakes.image(path, rng, (9, 9))
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        start = 33 if suffix == ".png" else 0  # behind a PNG's size: a huge one takes OpenCV seconds to refuse
        refused = 0
        for _ in range(60):
            data = whole.copy()
            data[rng.integers(start, len(data), 2)] = rng.integers(0, 256, 2)
            path.write_bytes(data.tobytes())
            try:
                read_native(path) if kind == "mask" else reading.read_image(path)
            except UserError:
                refused += 1
        assert refused


@pytest.mark.parametrize(("mode", "dtype"), [("RGB", None), ("1", None), ("LA", None)])
def test_masks_of_other_depth_are_refused(tmp_path: Path, mode: str, dtype: type | None) -> None:
    stored = Image.fromarray(np.ones((2, 2), dtype)) if dtype else Image.new(mode, (2, 2))
    stored.save(tmp_path / "mask.png")
    with pytest.raises(UserError, match=rf"mask\.png is of mode {mode}, not one byte a pixel"):
        reading.read_mask(tmp_path / "mask.png", TABLE)


@pytest.mark.parametrize("bits", [2, 4])
def test_greyscale_of_few_bits_is_refused_because_pillow_stretches_it(tmp_path: Path, bits: int) -> None:
    Image.fromarray(np.array([[0, 1]], np.uint8)).save(tmp_path / "mask.png", bits=bits)
    with Image.open(tmp_path / "mask.png") as file:
        assert np.asarray(file).tolist() == [[0, 255 // (2**bits - 1)]]
    with pytest.raises(UserError, match=r"mask\.png is greyscale of less than 8 bits"):
        reading.read_mask(tmp_path / "mask.png", TABLE)


def test_unknown_ids_are_named_with_their_file(tmp_path: Path) -> None:
    path = fakes.mask(tmp_path / "odd.png", np.array([[0, 12, 200, 12, 255]]))
    with pytest.raises(UserError, match=r"the mask .*odd\.png holds unknown ids 12, 200: check that `dataset`"):
        reading.read_mask(path, TABLE)


def test_real_idd_lite_is_as_its_readme_says(shared_data: Path) -> None:
    root = shared_data / "idd_lite"
    if not root.is_dir():
        pytest.skip("IDD-Lite is not here: ../shared/data/idd_lite is absent")
    classes = CLASS_SETS["idd7"]
    counts = np.zeros(256)
    for split, images, drives in (("train", 1403, 309), ("val", 99, 31)):
        listing = datasets.listing("idd_lite", root, split)
        assert (len(listing.samples), listing.unused) == (images, {})
        assert len({sample.key.split("~")[0] for sample in listing.samples}) == drives
        found = scan(listing.samples, datasets.table("idd_lite", root, classes), split)
        assert [one.faults for one in found if one.faults] == []
        if split == "train":
            counts += sum(one.counts for one in found if one.counts is not None)
    shares = 100 * np.r_[counts[:7], counts[IGNORE]] / counts.sum()
    assert shares == pytest.approx([32.4, 2.2, 1.3, 8.1, 11.2, 26.0, 18.9, 0.02], abs=0.06)


def test_instances_beside_idds_labels_are_no_masks(tmp_path: Path) -> None:
    fakes.write("idd_lite", tmp_path)
    listing = datasets.listing("idd_lite", tmp_path, "train")
    assert all(str(sample.mask).endswith(f"{sample.key.split('~')[1]}_label.png") for sample in listing.samples)
    assert listing.unused == {}


@pytest.mark.parametrize(
    ("name", "split"), [("gta5", ""), ("cityscapes", "val"), ("camvid", "train"), ("camvid", "val")]
)
def test_real_data_is_found_and_read(shared_data: Path, name: str, split: str) -> None:
    root = shared_data / name
    samples = datasets.find(name, root, split)
    assert len(samples) == {"gta5": 3, "cityscapes": 1, "train": 367, "val": 101}[name if name != "camvid" else split]
    for classes in CLASS_SETS.values():
        if (name, classes.name) == ("camvid", "idd7"):  # neither's names say what the other's are
            continue
        table = datasets.table(name, root, classes)
        for sample in samples[:5]:
            assert sample.mask is not None
            mask = reading.read_mask(sample.mask, table)
            assert mask.shape == reading.read_image(sample.image).shape[:2]
            assert (mask < len(classes.names)).mean() > 0.5


def test_real_cityscapes_labels_are_its_own_train_ids(shared_data: Path) -> None:
    root = shared_data / "cityscapes"
    mask = datasets.find("cityscapes", root, "val")[0].mask
    assert mask is not None
    with Image.open(str(mask).replace("labelIds", "labelTrainIds")) as file:
        expected = np.asarray(file)
    table = datasets.table("cityscapes", root, CLASS_SETS["cityscapes19"])
    agree = reading.read_mask(mask, table) == expected
    assert agree.mean() > 0.997  # the two files were downscaled apart: 77 pixels on edges differ
    native = read_native(mask)
    assert all(agree[native == i].mean() > 0.9 for i in np.unique(native))


def test_real_gta5_has_license_plates_that_count_for_nothing(shared_data: Path) -> None:
    path = _frame(shared_data, "labels")
    native = read_native(path)
    assert native.max() == 34
    mask = reading.read_mask(path, datasets.table("gta5", shared_data / "gta5", CLASS_SETS["cityscapes19"]))
    assert (mask[native == 34] == IGNORE).all()


def test_real_camvid_shares_are_those_of_its_readme(shared_data: Path) -> None:
    counts = np.zeros(256)
    for found in scan(datasets.find("camvid", shared_data / "camvid", "train"), TABLE, "camvid"):
        assert found.faults == ()
        assert found.counts is not None
        counts += found.counts
    shares = 100 * np.r_[counts[:11], counts[IGNORE]] / counts.sum()
    assert shares == pytest.approx([16.9, 23.3, 1.0, 31.7, 4.5, 9.7, 1.2, 1.1, 5.9, 0.6, 0.3, 4.0], abs=0.06)


def test_class_lists(tmp_path: Path) -> None:
    path = tmp_path / "classes.csv"
    path.write_text("\ufeffid,name,red,green,blue\n3,car,1,2,3\n0,Void,,,\n7,road,,,\n255,ignore,,,\n")
    classes = datasets.class_set(str(path))
    assert (classes.name, classes.names, classes.colours[0]) == (path.as_posix(), ("car", "road"), (1, 2, 3))
    table = datasets.table("folder", tmp_path, classes)
    assert {i: int(c) for i, c in enumerate(table) if c != 254} == {0: IGNORE, 3: 0, 7: 1, 255: IGNORE}


def test_a_class_list_of_0_to_n_is_the_identity(tmp_path: Path) -> None:
    (tmp_path / "classes.csv").write_text("".join(["id,name\n", *(f"{i},class {i}\n" for i in range(255))]))
    classes = datasets.class_set(str(tmp_path / "classes.csv"))
    assert datasets.table("folder", tmp_path, classes).tolist() == list(range(256))
    assert len(set(classes.colours[:24])) == 24


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,name\n0,road\n0,car\n", "line 3: 0,car and 0,road clash"),
        ("id,name\n0,road\n1,Road\n", "line 3: 1,Road and 0,road clash"),
        ("id,name\nx,road\n", "line 2: id is 'x' and name is 'road'"),
        ("id,name\n256,road\n", "line 2: id is '256'"),
        ("id,name\n1,\n", "line 2: id is '1' and name is ''"),
        ("id,name\n1,US$bill\n", "line 2: Label Studio would show something else for the name 'US$bill'"),
        ("number;class\n0;road\n", "write the header id,name"),
        ("id,name\n255,road\n", "the id 255 means `ignore`: give 'road' another id"),
        ("id,name,red,green,blue\n0,road,1,2,300\n", "the colour '1,2,300' of 'road'"),
        ("id,name,red,green,blue\n0,road,1,2,\n", "the colour '1,2,' of 'road'"),
        ("id,name\n0,void\n", "lists no class"),
        ("", "lists no class"),
    ],
)
def test_class_lists_that_cannot_be(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "classes.csv").write_text(text)
    with pytest.raises(UserError) as error:
        datasets.class_set(str(tmp_path / "classes.csv"))
    assert message in str(error.value)
    assert str(tmp_path / "classes.csv") in str(error.value)


def test_a_class_list_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"class list .*none\.csv is missing: write a CSV with the columns id,name"):
        datasets.class_set(str(tmp_path / "none.csv"))
    (tmp_path / "image.csv").write_bytes(b"id,name\n0,\xff\xfe\n")
    with pytest.raises(UserError, match=r"image\.csv is no CSV in UTF-8"):
        datasets.class_set(str(tmp_path / "image.csv"))


def test_a_name_that_the_class_set_lacks(tmp_path: Path) -> None:
    (tmp_path / "classes.csv").write_text("id,name\n0,Road\n1,Unlabelled\n2,tram\n")
    with pytest.raises(UserError, match=r"'tram' is no class of camvid11: rename it to one of Sky, Building.*`ignore`"):
        datasets.table("folder", tmp_path, CLASSES)


def test_unknown_names_are_answered_with_the_known(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown class set .cityscapes.: choose one of cityscapes19, camvid11, idd7"):
        datasets.class_set("cityscapes")
    known = "unknown dataset 'synthia': choose one of gta5, cityscapes, camvid, idd_lite, folder"
    with pytest.raises(UserError, match=known):
        datasets.find("synthia", tmp_path, "")
    with pytest.raises(UserError, match=known):
        datasets.table("synthia", tmp_path, CLASSES)


def test_two_images_of_one_name(tmp_path: Path) -> None:
    fakes.write("folder", tmp_path)
    fakes.image(tmp_path / "images/street 1.jpg", np.random.default_rng(0))
    with pytest.raises(UserError, match=r"street 1\.(jpg|png) and .*street 1\.(jpg|png) have one name, 'street 1'"):
        datasets.find("folder", tmp_path, "")


def test_a_look_tells_every_fault_of_a_sample(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = photo(tmp_path / "a.jpg", exif=exif)
    mask = fakes.mask(tmp_path / "a.png", np.full((40, 60), 77))
    size, ids = look(datasets.Sample("a", image, mask), TABLE).faults
    assert size == (
        "size mismatch",
        f"the mask {mask} is 60x40, its image {image} 40x60 (the image is turned by its EXIF tag, masks are not)",
    )
    assert ids == ("unknown ids", f"the mask {mask} holds unknown ids 77")
    assert look(datasets.Sample("a", image, mask), None).faults == ()


def test_a_look_counts_pixels_after_the_table(tmp_path: Path) -> None:
    classes = ClassSet("two", ("Road", "Car"), ((0, 0, 0), (1, 1, 1)))
    image = photo(tmp_path / "a.png")
    ids = np.random.default_rng(0).integers(0, 12, (40, 60))
    found = look(
        datasets.Sample("a", image, fakes.mask(tmp_path / "m.png", ids)), datasets.table("camvid", tmp_path, classes)
    )
    assert found.counts is not None
    assert {int(i): int(found.counts[i]) for i in np.flatnonzero(found.counts)} == {
        0: (ids == 3).sum(),
        1: (ids == 8).sum(),
        IGNORE: (~np.isin(ids, (3, 8))).sum(),
    }
    assert (found.height, found.width) == (40, 60)


def test_shared_images_go_by_content(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    one = [fakes.image(tmp_path / f"{i}.png", rng) for i in range(3)]
    (tmp_path / "copy.png").write_bytes(one[1].read_bytes())
    (tmp_path / "broken.png").write_bytes(b"")
    left = scan([datasets.Sample(p.stem, p, None) for p in [*one, tmp_path / "broken.png"]], None, "left")
    right = scan([datasets.Sample(n, tmp_path / f"{n}.png", None) for n in ("copy", "broken")], None, "right")
    assert [(a.sample.key, b.sample.key) for a, b in shared_images(left, right)] == [("1", "copy")]


def test_difference_hash_says_which_neighbour_is_brighter() -> None:
    image = np.zeros((8, 9, 3), np.uint8)
    image[0, 1] = image[7, 8] = 255
    assert difference_hash(image) == (1 << 63) + 1
    noise = np.random.default_rng(0).integers(0, 256, (90, 160, 3), np.uint8)
    assert (difference_hash(noise) ^ difference_hash((noise * 0.8).astype(np.uint8))).bit_count() <= 3
    assert (difference_hash(noise) ^ difference_hash(noise[:, ::-1])).bit_count() > 10


def test_difference_hash_ignores_the_file_format() -> None:
    with io.BytesIO() as buffer:
        rows, columns = np.mgrid[0:90, 0:160]
        smooth = (127 + 60 * np.sin(rows / 9) + 60 * np.cos(columns / 13)).astype(np.uint8)[..., None].repeat(3, axis=2)
        Image.fromarray(smooth).save(buffer, "JPEG", quality=40)
        again = np.asarray(Image.open(buffer).convert("RGB"))
    assert (difference_hash(smooth) ^ difference_hash(again)).bit_count() <= 3


def test_near_pairs_agree_with_counting_bits_one_by_one() -> None:
    rng = np.random.default_rng(0)
    one = rng.integers(0, 2**63, 300, np.uint64)
    other = np.concatenate([one[::7] ^ np.uint64(0b1011), rng.integers(0, 2**63, 40, np.uint64)])
    for distance in (2, 3, 24):
        expected = [
            [i, j]
            for i, a in enumerate(one.tolist())
            for j, b in enumerate(other.tolist())
            if (a ^ b).bit_count() <= distance
        ]
        assert near_pairs(one, other, distance).tolist() == expected
    assert len(near_pairs(one, other, 3)) == 43
    assert near_pairs(one[:0], other, 3).shape == (0, 2)
