"""What is personalized: the shipped artwork, and folders of anybody's own."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cp_train.benchmark import artwork
from cp_train.benchmark.setups import SETUPS, sequence
from cp_train.benchmark.subjects import Subject, from_folders, shipped, together
from cp_train.pretrain.artwork import STYLES
from cp_train.pretrain.pictures import Library
from cp_train.pretrain.splits import held_out, part
from services.errors import InputError, UnsupportedImageError
from services.settings import Settings

SIX = SETUPS["six"]


def photo(path: Path, colour: str, size: int = 40) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), colour).save(path)


def test_the_sheet_holds_every_held_out_concept_and_nothing_that_must_be_shared_alike() -> None:
    views = artwork.load()
    assert list(views) == [concept.code for concept in held_out()]
    assert {picture.shape for picture in views.values()} == {(3, 64, 64, 4)}
    assert all(picture[..., 3].max(axis=(1, 2)).min() == 255 for picture in views.values())
    said = json.loads((artwork.FOLDER / "sheet.json").read_text("utf-8"))["packages"]
    licences = {package.name: package.licence for package in STYLES}
    assert {row["package"]: row["licence"] for row in said}.items() <= licences.items()
    assert {row["licence"] for row in said} == {"MIT"}


def test_the_sheet_is_made_again_from_a_library(tmp_path: Path) -> None:
    wanted = held_out()[:7]
    generator = np.random.default_rng(0)
    rgba = generator.integers(0, 256, (len(wanted) * 3, 64, 64, 4), dtype=np.uint8)
    codes, styles = np.repeat([c.code for c in wanted], 3), np.tile(artwork.VIEWS, len(wanted))
    artwork.write(Library(rgba, codes, styles), wanted, tmp_path)
    for number, (code, views) in enumerate(artwork.load(tmp_path).items()):
        assert code == wanted[number].code
        assert (views == rgba[3 * number : 3 * number + 3]).all()


def test_a_shipped_subject_is_the_same_every_time_and_its_pictures_differ() -> None:
    first, again = shipped("tuning")[0], shipped("tuning")[0]
    assert first.concept.noun == part("tuning")[0].noun
    assert len(first.images) == 6
    assert [image.tobytes() for image in first.images] == [image.tobytes() for image in again.images]
    assert len({image.tobytes() for image in first.images}) == 6
    assert {image.size for image in first.images} == {(64, 64)}


def test_orders_are_of_different_concepts_while_there_are_enough() -> None:
    subjects = shipped("reporting")
    orders = [sequence(SIX, order, subjects) for order in range(11)]
    names = [[s.concept.name for s in order] for order in orders]
    assert len({name for order in names[:10] for name in order}) == 60
    assert names[10] not in names[:10]
    assert names == [[s.concept.name for s in sequence(SIX, order, subjects)] for order in range(11)]


def test_a_setup_needs_enough_concepts() -> None:
    few = shipped("reporting")[:5]
    with pytest.raises(InputError, match="six takes 6 concepts and there are 5"):
        sequence(SIX, 0, few)
    assert len(sequence(SIX, 0, few, limit=4)) == 4


def test_folders_become_concepts(tmp_path: Path) -> None:
    for name in ("Cat Statue2", "dog6", "thing"):
        photo(tmp_path / name / "a.png", "red")
        photo(tmp_path / name / "b.jpg", "blue", 50)
    (tmp_path / "nouns.txt").write_text("thing: teapot\n", "utf-8")
    found = from_folders(tmp_path, Settings())
    said = [(subject.concept.name, subject.concept.noun, len(subject.images)) for subject in found]
    assert said == [("cat-statue2", "cat statue", 2), ("dog6", "dog", 2), ("thing", "teapot", 2)]


def test_folders_that_cannot_be_concepts_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        from_folders(tmp_path / "nowhere", Settings())
    with pytest.raises(InputError, match="no subfolders"):
        from_folders(tmp_path, Settings())
    (tmp_path / "mug").mkdir()
    with pytest.raises(InputError, match="mug: There are no files"):
        from_folders(tmp_path, Settings())
    photo(tmp_path / "mug" / "a.png", "red")
    (tmp_path / "nouns.txt").write_text("cup: cup\n", "utf-8")
    with pytest.raises(InputError, match="'cup' that is not `folder: noun`"):
        from_folders(tmp_path, Settings())
    (tmp_path / "nouns.txt").unlink()
    photo(tmp_path / "MUG" / "a.png", "red")
    with pytest.raises(InputError, match="several folders would be called <mug>"):
        from_folders(tmp_path, Settings())


def test_what_is_no_picture_is_named_with_its_folder(tmp_path: Path) -> None:
    (tmp_path / "mug").mkdir()
    (tmp_path / "mug" / "a.png").write_text("not a picture", "utf-8")
    with pytest.raises(UnsupportedImageError, match=r"mug: 'a\.png' is not a PNG"):
        from_folders(tmp_path, Settings())


def test_two_together_stand_in_opposite_corners() -> None:
    red, blue = (
        Subject(shipped("tuning")[0].concept, (), (Image.new("RGBA", (64, 64), colour),)) for colour in ("red", "blue")
    )
    (both,) = together(red, blue, 64)
    assert both.getpixel((2, 2)) == (255, 0, 0)
    assert both.getpixel((61, 61)) == (0, 0, 255)
    assert both.getpixel((32, 32)) == (0, 0, 255)
    assert both.getpixel((61, 2)) == (255, 255, 255)
