"""The artwork, the lists, the scenes and the words."""

import base64
import hashlib
import io
import json
import random
import shutil
import sys
import tarfile
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
from PIL import Image

from cp_train.pretrain import artwork, captions, compose, pictograms, pictures, redraw, render, splits
from cp_train.pretrain.artwork import Artwork, ArtworkError, Package
from cp_train.pretrain.compose import TINTS, Scene
from cp_train.pretrain.scenes import Painter
from services.errors import UnavailableError

ROOT = Path(__file__).parents[3]
SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 40 40">{}</svg>'
SQUARE = SVG.format('<rect x="4" y="10" width="20" height="10" fill="red"/>')


def pack(folder: Path, name: str, members: dict[str, object], **fields) -> Package:
    """A package of our own in the shape npm gives, with its true digest."""
    package = Package(name=name, version="1.0.0", sha512="", licence="MIT", author="us", **{"style": name, **fields})
    with tarfile.open(folder / package.tarball, "w:gz") as archive:
        for path, content in members.items():
            data = json.dumps(content).encode()
            info = tarfile.TarInfo(f"package/{path}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    digest = hashlib.sha512((folder / package.tarball).read_bytes()).digest()
    return Package(**{**package.__dict__, "sha512": base64.b64encode(digest).decode()})


@pytest.fixture
def shelf(tmp_path, monkeypatch) -> Artwork:
    """A label package and styles whose icons are known by code, by name, or by a name with decorations."""
    fox = {"hexcode": "1F98A", "label": "fox", "group": 3, "subgroup": 34}
    labels = [fox, {"hexcode": "2764-FE0F", "label": "red heart", "group": 0}]
    icons = {"fox": {"body": "<g/>"}, "red-heart": {"body": "<g/>", "width": 9}}
    chars = {"1f98a": "fox", "2764-fe0f": "red-heart"}
    known = {"icons.json": {"icons": icons, "width": 8, "height": 8}, "chars.json": chars}
    decorated = {"fox-face-2": {"body": "<a/>"}, "fox-face-1": {"body": "<b/>"}, "nobody": {"body": ""}}
    named = {"icons.json": {"icons": decorated}, "chars.json": {}}
    monkeypatch.setattr(artwork, "LABELS", pack(tmp_path, "labels", {"en/data.json": labels}))
    styles = [pack(tmp_path, name, known) for name in ("noto", "twemoji", "openmoji")]
    monkeypatch.setattr(artwork, "STYLES", (*styles, pack(tmp_path, "streamline", named)))
    return Artwork(tmp_path)


def test_drawings_are_addressed_by_code_points(shelf):
    assert set(shelf.drawings("noto")) == {"1f98a", "2764"}
    assert 'viewBox="0 0 9 8"' in shelf.drawings("noto")["2764"]


def test_an_icon_known_by_name_finds_its_code(shelf):
    assert list(shelf.drawings("streamline")) == ["1f98a"]
    assert "<a/>" in shelf.drawings("streamline")["1f98a"]


def test_a_package_that_is_not_the_pinned_one_is_refused(shelf, tmp_path):
    package = artwork.package_of("noto")
    (tmp_path / package.tarball).write_bytes(b"something else")
    with pytest.raises(ArtworkError, match=r"not the pinned noto@1\.0\.0"):
        artwork.fetch(package, tmp_path)


def test_a_name_that_means_another_thing_is_left_out(shelf, tmp_path, monkeypatch):
    misled = pack(tmp_path, "misled", {"icons.json": {"icons": {"fox": {"body": ""}}}, "chars.json": {}})
    monkeypatch.setattr(artwork, "STYLES", (*artwork.STYLES, misled))
    assert list(shelf.drawings("misled")) == ["1f98a"]
    monkeypatch.setattr(artwork, "STYLES", (*shelf_without(misled), replace(misled, other=frozenset({"fox"}))))
    assert not shelf.drawings("misled")


def shelf_without(package: Package) -> tuple[Package, ...]:
    return tuple(other for other in artwork.STYLES if other is not package)


def test_pictograms_are_found_by_noun_in_one_variant(tmp_path):
    names = ("fox-duotone", "fox", "cat-face-duotone", "dog-2-duotone", "mouse-duotone", "xyz-duotone")
    icons = {"icons": {name: {"body": f"<g id='{name}'/>"} for name in names}}
    facts = {"suffix": "-duotone", "other": frozenset({"mouse"})}
    package = pictograms.Icons(**{**pack(tmp_path, "icons", {"icons.json": icons}).__dict__, **facts})
    codes = {noun: noun.upper() for noun in ("fox", "cat", "dog", "mouse", "owl")}
    drawn = dict(package.drawings(tmp_path, codes))
    assert set(drawn) == {"FOX", "CAT", "DOG"}
    assert "fox-duotone" in drawn["FOX"]


def test_a_fonts_glyphs_are_drawings(tmp_path):
    font = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")
    base = pack(tmp_path, "font", {})
    with tarfile.open(tmp_path / base.tarball, "w:gz") as archive:
        archive.add(font, "package/font.ttf")
    digest = hashlib.sha512((tmp_path / base.tarball).read_bytes()).digest()
    facts = {**base.__dict__, "sha512": base64.b64encode(digest).decode(), "file": "package/font.ttf"}
    drawn = dict(
        pictograms.Font(**facts).drawings(tmp_path, {"sun": "2600", "fox": "1f98a", "pair": "1f468-200d-1f33e"})
    )
    assert list(drawn) == ["2600"], "no glyph of a fox, and no sequence"
    alpha = np.asarray(render.picture(drawn["2600"], 32))[..., 3]
    assert alpha.max() == 255
    assert 0.1 < (alpha > 128).mean() < 0.7


def test_single_subjects_are_pictograms_some_of_the_time_and_seen_on_every_ground(pictures, few):
    subject, style = few[0], splits.PICTOGRAM_STYLES[0]
    ink = pictures.rgba_NHW4.copy()
    ink[pictures.index[subject.code, style], ..., :3] = 0
    painter = Painter(replace(pictures, rgba_NHW4=ink), few, splits.TRAIN_STYLES)
    alpha = ink[pictures.index[subject.code, style], ..., 3]
    seen = [painter.single(random.Random(seed), subject)[alpha == 255] for seed in range(200)]
    flat = [colours for colours in seen if (colours == colours[0]).all()]
    assert 0.3 < len(flat) / len(seen) < 0.5
    assert len({tuple(colours[0]) for colours in flat}) > 4, "inks"


def test_single_subjects_are_seen_in_other_hands_too(pictures, few):
    subject, style = few[0], splits.TRAIN_STYLES[0]
    drawn = pictures.select([subject], [style])
    hands = [replace(drawn, rgba_NHW4=np.full_like(drawn.rgba_NHW4, shade)) for shade in (50, 90)]
    redrawn = replace(
        drawn,
        rgba_NHW4=np.concatenate([hand.rgba_NHW4 for hand in hands]),
        codes=np.repeat(drawn.codes, 2),
        styles=np.repeat(drawn.styles, 2),
    )
    painter = Painter(pictures, few, (style,), redrawn)
    seen = [painter.single(random.Random(seed), subject, pictograms=0.0) for seed in range(300)]
    flat = {int(p[0, 0, 0]) for p in seen if (p == p[0, 0]).all()}
    share = sum((p == p[0, 0]).all() for p in seen) / len(seen)
    assert len(flat) > 2, "both hands, on several grounds"
    assert 0.65 < share < 0.85


def test_a_drawing_by_another_hand_is_still_a_drawing_of_its_own():
    svg = SVG.format(
        '<defs><linearGradient id="g"><stop stop-color="#ff0000"/><stop stop-color="#0000ff"/></linearGradient></defs>'
        '<path fill="url(#g)" d="M2 2h12v12h-12z"/><circle cx="8" cy="8" r="3" fill="#0a0"/>'
    )
    drawn = [redraw.redrawn(svg, random.Random(seed)) for seed in range(40)]
    assert len(set(drawn)) == len(drawn)
    assert drawn[3] == redraw.redrawn(svg, random.Random(3))
    assert 5 < sum("url(#g)" in other for other in drawn) < 35, "some are flat"
    assert 5 < sum("stroke=" in other for other in drawn) < 35, "some are outlined"
    pytest.importorskip("resvg_py")
    shown = [render.picture(other) for other in drawn]
    assert all(image is not None for image in shown)
    whole = np.asarray(render.picture(svg))[..., 3] > 128
    for image in shown:
        other = np.asarray(image)[..., 3] > 128
        assert (whole & other).sum() > 0.45 * (whole | other).sum(), "the thing is where it was"


@pytest.mark.parametrize(
    ("start", "x", "y"),
    [("M6 8", 6, 8), ("m6,8", 6, 8), ("M6.0.8", 6, 0.8), ("M -.6-8", -0.6, -8), ("M6.\n.8", 6, 0.8)],
)
def test_however_a_path_says_where_it_begins_it_is_turned_about_that(start, x, y):
    svg = SVG.format(f'<path fill="#0a0" d="{start}h9v9h-9z"/>')
    drawn = [redraw.redrawn(svg, random.Random(seed)) for seed in range(20)]
    assert sum(f"translate({-x:.3f} {-y:.3f})" in other for other in drawn) > 10


def test_every_vector_drawing_that_may_be_trained_on_is_drawn_by_several_hands(shelf, tmp_path, monkeypatch):
    pytest.importorskip("resvg_py")
    monkeypatch.setattr(pictures, "TRAIN_STYLES", ("noto",))
    monkeypatch.setattr(pictures, "JUDGE_STYLES", ("twemoji",))
    body = {"body": '<path fill="#f80" d="M1.5.5h5v5h-5z"/>'}
    known = {"icons.json": {"icons": {"fox": body}, "width": 8, "height": 8}, "chars.json": {"1f98a": "fox"}}
    (tmp_path / "run/packages").mkdir(parents=True)
    styles = [pack(tmp_path / "run/packages", name, known) for name in ("noto", "twemoji", "openmoji")]
    monkeypatch.setattr(artwork, "STYLES", tuple(styles))
    shutil.copy(tmp_path / artwork.LABELS.tarball, tmp_path / "run/packages")
    made = pictures.redrawings(tmp_path / "run")
    assert {(str(code), str(style)) for code, style in zip(made.codes, made.styles, strict=True)} == {
        ("1f98a", "noto"),
        ("1f98a", "twemoji"),
    }
    hands = made.rgba_NHW4[made.styles == "noto"]
    assert len({hand.tobytes() for hand in hands}) == len(hands) == 8


def test_a_gradient_becomes_its_mean_colour():
    svg = '<radialGradient id="a" r="1"><stop stop-color="#f00"/><stop stop-color="#00f"/></radialGradient>'
    assert 'fill="#800080"' in redraw.flattened(f'<svg viewBox="0 0 2 2">{svg}<path fill="url(#a)"/></svg>')
    assert redraw.flattened('<path fill="url(#b)"/>') == '<path fill="url(#b)"/>', "no such gradient"


def test_the_judge_never_sees_what_it_is_measured_by():
    assert not set(splits.JUDGE_STYLES) & set(splits.JUDGE_HELD_OUT_STYLES)
    assert {p.style for p in artwork.STYLES if p.share_alike} <= set(splits.JUDGE_HELD_OUT_STYLES)


def test_every_style_is_pinned_and_share_alike_is_never_trained_on():
    packages = (*artwork.STYLES, *pictograms.PICTOGRAMS)
    assert all(len(base64.b64decode(p.sha512)) == 64 and p.licence and p.author for p in packages)
    assert len({p.style for p in packages}) == len(packages)
    assert {p.licence for p in (*packages, artwork.LABELS)} <= artwork.LICENCES.keys()
    assert [p.style for p in artwork.STYLES if p.share_alike] == ["openmoji"]
    assert not [p.name for p in pictograms.PICTOGRAMS if p.share_alike]
    assert {p.style for p in artwork.STYLES if p.share_alike} <= set(splits.HELD_OUT_STYLES)


def test_a_picture_is_cropped_centred_and_padded():
    pytest.importorskip("resvg_py")
    alpha = np.asarray(render.picture(SQUARE, 64))[..., 3]
    rows, columns = np.nonzero(alpha.max(1) > 128)[0], np.nonzero(alpha.max(0) > 128)[0]
    assert columns[0] == pytest.approx(64 * render.MARGIN, abs=1.5)
    assert columns[-1] == pytest.approx(63 - 64 * render.MARGIN, abs=1.5)
    assert rows[0] + rows[-1] == pytest.approx(63, abs=2)


def test_an_empty_drawing_is_no_picture():
    pytest.importorskip("resvg_py")
    assert render.picture(SVG.format("")) is None


def test_a_bitmap_is_a_drawing_too():
    stream = io.BytesIO()
    Image.new("RGBA", (20, 10), (0, 0, 255, 255)).save(stream, "webp", lossless=True)
    picture = np.asarray(render.picture(stream.getvalue(), 32))
    assert picture.shape == (32, 32, 4)
    assert picture[16, 16].tolist() == [0, 0, 255, 255]


def test_every_part_of_the_list_has_its_size():
    sizes = {name: len(splits.part(name)) for name in splits.PARTS}
    assert sizes == {"train": 262, "judged": 100, "tuning": 40, "reporting": 60}
    assert len({c.code for c in splits.concepts()}) == len({c.noun for c in splits.concepts()}) == 462
    assert {"robot", "fox"} <= {c.noun for c in splits.part("tuning")}
    with pytest.raises(ValueError, match="no part"):
        splits.part("training")


SAID_OF_OTHERS = {
    "bird": {"bird"},  # the category of other birds
    "castle": {"japanese castle"},
    "fountain": {"fountain pen"},
    "satellite": {"satellite dish"},
}
"""Held-out nouns that captions have in them nevertheless, and where: as part of what another thing is called."""


def test_held_out_nouns_are_in_no_other_words_of_captions():
    others = {word for concept in splits.trained() for word in (concept.noun, concept.category)}
    others |= {word for media in captions.MEDIA.values() for word in media}
    others |= {*captions.ANY_MEDIUM, *compose.TINTS, *compose.GROUNDS}
    secret = {concept.noun for concept in splits.held_out()}
    found = {noun: {words for words in others if f" {noun} " in f" {words} "} for noun in secret}
    assert {noun: words for noun, words in found.items() if words} == SAID_OF_OTHERS


def test_the_vae_never_sees_a_held_out_concept(pictures, few):
    seen = pictures.for_the_vae()
    assert set(seen.codes) == {c.code for c in few if c.trained}
    assert not set(seen.styles) & set(splits.HELD_OUT_STYLES)


def test_other_pictures_of_a_listed_thing_are_left_out():
    assert {"1f432", "26c4", "1f3c5"} <= splits.twins()
    assert not splits.twins() & {concept.code for concept in splits.concepts()}
    drawn = dict.fromkeys(["1f409", "1f432", "1f330"], "<svg/>")
    labels = {code: artwork.Label(code, "", 3) for code in drawn}
    found = SimpleNamespace(labels=labels, drawings=lambda _: drawn)
    assert set(pictures._wanted(found, "noto", {"dragon": "1f409"})) == {"1f409", "1f330"}


def test_a_library_is_read_as_it_was_written(pictures, tmp_path):
    pictures.save(tmp_path / "pictures.npz")
    again = type(pictures).load(tmp_path / "pictures.npz")
    assert (again.rgba_NHW4 == pictures.rgba_NHW4).all()
    assert again.index == pictures.index


def test_provenance_counts_every_picture_once(pictures):
    rows = pictures_of(pictures)
    assert sum(row[key] for row in rows for key in ("trained", "held_out", "scenery") if key in row) == len(pictures)
    assert counted(with_another(pictures, "noto")) == {
        **dict.fromkeys((*splits.TRAIN_STYLES, *splits.HELD_OUT_STYLES, splits.PICTOGRAM_STYLES[0]), (4, 2, 0)),
        **dict.fromkeys(splits.PICTOGRAM_STYLES[1:], (0, 0, 0)),
        "noto": (4, 2, 1),
    }


def with_another(library, style):
    """The same and one more picture, of a thing that is not listed."""
    return replace(
        library,
        rgba_NHW4=np.concatenate([library.rgba_NHW4, library.rgba_NHW4[:1]]),
        codes=np.append(library.codes, "1f330"),
        styles=np.append(library.styles, style),
    )


def counted(library):
    """Style -> pictures of trained things, of held-out ones, and of others."""
    rows = [row for row in pictures_of(library) if row["style"] != "labels"]
    return {row["style"]: (row["trained"], row["held_out"], row["scenery"]) for row in rows}


def pictures_of(library):
    return pictures.provenance(library)


@pytest.mark.parametrize(
    ("style", "used"),
    [
        ("noto", "trained: base model and judge; held out: judge; others: VAE and judge"),
        ("twemoji", "trained: base model; held out: measured against; others: VAE"),
        ("emojione", "trained: judge; held out: judge; others: judge"),
        ("openmoji", "trained: measured against; held out: measured against; others: measured against"),
        ("outline", "trained: image tower and judge; held out: judge; others: judge"),
    ],
)
def test_provenance_says_what_learned_from_each_kind_of_picture(pictures, few, style, used):
    rows = {row["style"]: row["used"] for row in pictures_of(with_another(pictures.select(few, [style]), style))}
    assert rows[style] == used
    assert set(rows.values()) == {used, "nouns and groups", ""}, "where there is no picture, nothing learned"


@pytest.mark.parametrize("make", [pictures.library, pictures.redrawings])
def test_without_a_renderer_nothing_is_downloaded(make, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(UnavailableError, match=r"pip install 'palimpsest\[pretrain\]'"):
        make(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert any(package.startswith("resvg-py==") for package in extras["pretrain"])


def test_tinting_gives_the_colour_and_keeps_light_and_dark(painter):
    ramp = np.zeros((4, 16, 4), np.uint8)
    ramp[..., :3] = np.arange(16)[None, :, None] * 17
    ramp[..., 3] = 255
    tinted = compose.tinted(ramp, TINTS["blue"]).astype(int)
    light = tinted[0, :, :3] @ [0.299, 0.587, 0.114]
    assert (np.diff(light) >= -1).all()
    assert compose.main_colour(compose.tinted(ramp, TINTS["blue"]), share=0.5) == "blue"
    assert (compose.tinted(ramp, TINTS["blue"])[..., 3] == 255).all()


@pytest.mark.parametrize("name", TINTS)
def test_every_tint_is_recognised_as_its_word(name):
    flat = np.full((8, 8, 4), (*TINTS[name], 255), np.uint8)
    assert compose.main_colour(flat) == name


def test_a_pair_shows_both(painter):
    one, two = (np.full((64, 64, 4), (*TINTS[c], 255), np.uint8) for c in ("red", "green"))
    both = compose.paired(one, two)
    assert both[2, 2, :3].tolist() == list(TINTS["red"])
    assert both[61, 61, :3].tolist() == list(TINTS["green"])
    assert both[2, 61, 3] == 0


def test_captions_say_what_the_scene_shows(few):
    scene = Scene(subject=few[0], style="flat", second=few[1], ground="orange")
    texts = {captions.caption(scene, random.Random(n)) for n in range(50)}
    assert all(few[0].noun in text and few[1].noun in text and "orange" in text for text in texts)
    assert any(text.startswith("a flat drawing of") for text in texts)
    assert not any(text.startswith("a photo") or "a orange" in text for text in texts)


@pytest.mark.parametrize(
    ("noun", "text"),
    [
        ("grapes", "grapes"),
        ("owl", "an owl"),
        ("fox", "a fox"),
        ("unicorn", "a unicorn"),
        ("ufo", "a ufo"),
        ("hourglass", "an hourglass"),
    ],
)
def test_articles(noun, text):
    assert captions.plain(noun) == f"a photo of {text}"
