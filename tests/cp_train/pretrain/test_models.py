"""The parts that learn: what each computes, on sizes that take milliseconds."""

import random
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from cp_train.evaluation.distances import unbiased_kid
from cp_train.pretrain import augment, clip, evaluate, judge, pool, tokens, unet, vae
from cp_train.pretrain.loop import Schedule, generator
from cp_train.pretrain.render import on
from cp_train.pretrain.scenes import tensor
from cp_train.pretrain.splits import part
from cp_train.pretrain.stages import Recipe

TINY = Recipe.tiny()
CHANGES = {
    "moved": {},
    "bent": {"by": 0.1},
    "relit": {},
    "rehued": {"share": 0.5},
    "filtered": {"share": 0.5},
    "blurred": {"share": 0.3},
    "cut": {"share": 0.5},
}


@pytest.fixture
def tokenizer(painter):
    return tokens.build(tokens.corpus(painter, 200), 700)


def test_any_text_becomes_known_tokens(tokenizer):
    ids = tokenizer("Zürich €5: a photo of a red apple!", padding="max_length").input_ids
    assert len(ids) == tokens.MAX_TOKENS
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True).startswith("zürich € 5 : a photo of")


def test_the_words_of_prompts_to_come_are_single_tokens(painter):
    tokenizer = tokens.build(tokens.corpus(painter, 200), Recipe().vocabulary)
    assert [len(tokenizer.tokenize(word)) for word in ("robot", "mug", "blue", "photo")] == [1, 1, 1, 1]


def test_a_concept_token_can_be_added(tokenizer):
    tokenizer.add_tokens("<v1>")
    assert tokenizer.tokenize("a <v1> mug")[1] == "<v1>"


@pytest.mark.parametrize("name", CHANGES)
def test_augmentations_keep_shape_and_range_and_repeat(name):
    x_BCHW = torch.rand(6, 3, 16, 16) * 2 - 1
    once, again = (getattr(augment, name)(x_BCHW, generator(1, 2), **CHANGES[name]) for _ in range(2))
    assert once.shape == x_BCHW.shape
    assert once.abs().max() <= 1.0001
    assert torch.equal(once, again)
    assert not torch.equal(once, x_BCHW)


def test_tracing_leaves_dark_outlines_on_white():
    x_BCHW = torch.ones(1, 3, 16, 16)
    x_BCHW[..., 4:12, 4:12] = -1
    lines = augment.traced(x_BCHW, generator(1, 2), share=1.0)
    assert (lines[..., 6:10, 6:10] == 1).all()
    assert (lines[..., 4, 5:11] == -1).all()
    assert torch.equal(augment.traced(x_BCHW, generator(1, 2), share=0.0), x_BCHW)


def test_standard_latents_decode_to_the_same_picture(pictures):
    model = vae.build(TINY.vae, 16).eval()
    with torch.no_grad():
        model.quant_conv.bias[:4] = torch.tensor([1.0, -2.0, 3.0, 0.5])
    x = tensor([on(rgba) for rgba in pictures.rgba_NHW4])
    before = vae.decode(model, vae.encode(model, x))
    vae.standardise(model, [on(rgba) for rgba in pictures.rgba_NHW4])
    z_NCHW = vae.encode(model, x)
    assert z_NCHW.mean((0, 2, 3)).abs().max() < 1e-3
    assert (z_NCHW.std((0, 2, 3)) - 1).abs().max() < 1e-2
    assert torch.allclose(before, vae.decode(model, z_NCHW), atol=1e-3)


def test_decibel_of_a_known_error():
    assert vae.decibel(0.04) == pytest.approx(20)


def test_the_judge_learns_what_it_is_shown(pictures, few, tmp_path):
    steps = Schedule(steps=200, lr=3e-3, warmup=1, every=200)
    config = judge.JudgeConfig(widths=(16, 32), blocks=1, batch=16, members=2, schedule=steps)
    known = few[:4]
    painter = painter_of(pictures, known)
    further = pictures.others(known, painter.styles)
    assert {concept.code for concept in further} == {concept.code for concept in few[4:]}
    learned = judge.train(config, painter, further, tmp_path / "judge.pt")
    assert learned.codes == tuple(concept.code for concept in known)
    seen = pictures.select(known, painter.styles)
    assert judge.accuracy(learned, seen) > 0.6
    assert judge.features(learned, [on(seen.rgba_NHW4[0])]).norm().item() == pytest.approx(1, abs=1e-4)


def test_blended_drawings_are_parts_of_both():
    x_BCHW, y_BCHW = torch.zeros(40, 3, 16, 16), torch.ones(40, 3, 16, 16)
    out = augment.blended(x_BCHW, y_BCHW, generator(1, 2))
    assert (out.flatten(1).amax(1) > 0.8).all()
    assert (out.flatten(1).amin(1) < 0.2).all()
    assert 0.4 < out.mean() < 0.6
    assert torch.equal(out, augment.blended(x_BCHW, y_BCHW, generator(1, 2)))
    assert torch.allclose(augment.blended(y_BCHW, y_BCHW, generator(1, 2)), y_BCHW), "with itself it stays as it is"


def test_a_restyled_map_has_its_shape_and_anothers_statistics():
    h_BCHW = torch.randn(40, 3, 8, 8) * torch.rand(40, 3, 1, 1) + torch.randn(40, 3, 1, 1)
    out = judge.restyled(h_BCHW, generator(1, 2), share=0.5)
    moments = [(h.mean((2, 3), keepdim=True), h.std((2, 3), keepdim=True)) for h in (h_BCHW, out)]
    (mean, spread), (new_mean, new_spread) = moments
    assert torch.allclose((out - new_mean) / new_spread, (h_BCHW - mean) / spread, atol=1e-3)
    kept = torch.isclose(new_mean, mean, atol=1e-4).all(1).flatten()
    assert 0.3 < kept.float().mean() < 0.7
    assert mean.amin() <= new_mean.amin()
    assert new_mean.amax() <= mean.amax() + 1e-4


def painter_of(pictures, concepts):
    from cp_train.pretrain.scenes import Painter
    from cp_train.pretrain.splits import TRAIN_STYLES

    return Painter(pictures, concepts, TRAIN_STYLES)


def test_a_saved_judge_judges_alike(pictures, few, tmp_path):
    first = judge.Judge(TINY.judge, tuple(c.code for c in few)).eval()
    first.save(tmp_path)
    real = [on(rgba) for rgba in pictures.rgba_NHW4]
    again = judge.Judge.load(tmp_path)
    assert torch.allclose(judge.features(first, real), judge.features(again, real), atol=2e-2)
    only = tuple(c.code for c in few[:2])
    assert set(judge.verdicts(again, real, only)) <= set(only)


def test_captions_that_read_alike_are_not_each_others_mistakes(painter, tokenizer):
    model = clip.build(TINY.clip, tokenizer, 16)
    x_BCHW = torch.rand(4, 3, 16, 16)
    _, note = clip.objective(model, x_BCHW, ["a fox"] * 4, tokenizer)
    assert "top-1 1.00 of 4" in note


def test_coding_rate_of_a_known_covariance():
    """Four captions, spread evenly over two of four directions: covariance diag(1/2, 1/2, 0, 0)."""
    z_BD = torch.zeros(4, 4)
    z_BD[range(4), [0, 0, 1, 1]] = torch.tensor([1.0, -1.0, 1.0, -1.0])
    assert clip.coding_rate(z_BD + 7, least=0.1).item() == pytest.approx(2 * np.log(1 + 5) / 8, rel=1e-5)
    assert clip.coding_rate(z_BD[:1].expand(4, 4)).item() == pytest.approx(0, abs=1e-6)


def test_the_noise_schedule_ends_in_noise_alone():
    noising = unet.Noising.capped(5.0)
    assert noising.alphas_T[-1].item() == pytest.approx(0, abs=1e-6)
    assert noising.weights_T.mean().item() == pytest.approx(1, abs=1e-4)
    assert torch.equal(unet.Noising.capped().weights_T, torch.ones(1000))


def test_a_denoiser_that_says_nothing_has_loss_one():
    def silent(x_t, _t, _context):
        return SimpleNamespace(sample=torch.zeros_like(x_t))

    z_BCHW = torch.randn(256, 4, 8, 8)
    loss = unet.objective(silent, z_BCHW, torch.zeros(256, 2, 3), unet.Noising.capped(), generator(1, 1))
    assert loss.item() == pytest.approx(1, abs=0.05)


def test_the_first_draws_are_plain_pictures_of_one_hand(painter):
    made = pool.build(painter, vae.build(TINY.vae, 16).eval(), variants=1, pairs=16)
    simple = {tuple(made.latents_NCHW[i].ravel()) for s in pool.SIMPLE for i in made._groups["plain", s]}
    z_BCHW, _ = made.draw(50, random.Random(1), simple=1.0)
    assert {tuple(z.ravel()) for z in z_BCHW.numpy().astype(np.float16)} <= simple


def test_a_pool_draws_every_kind_with_its_caption(painter, tmp_path):
    model = vae.build(TINY.vae, 16).eval()
    made = pool.build(painter, model, variants=1, pairs=16)
    assert len(made.latents_NCHW) == 4 * 8 * 3 + 16
    made.save(tmp_path / "pool.npz")
    again = pool.Pool.load(tmp_path / "pool.npz", painter.concepts)
    z_BCHW, texts = again.draw(200, random.Random(1))
    assert z_BCHW.shape == (200, 4, 8, 8)
    assert z_BCHW.dtype == torch.float32
    assert any(" and " in text for text in texts)
    assert any("background" in text for text in texts)
    assert again.draw(5, random.Random(2))[1] == made.draw(5, random.Random(2))[1]


def test_kid_is_zero_between_halves_and_large_between_worlds():
    torch.manual_seed(0)
    one = torch.nn.functional.normalize(torch.randn(400, 16) + 1, dim=-1)
    other = torch.nn.functional.normalize(torch.randn(400, 16) - 1, dim=-1)
    assert abs(unbiased_kid(one[:200], one[200:])) < 0.05
    assert unbiased_kid(one, other) > 1


def test_a_grid_puts_pictures_in_rows(tmp_path):
    evaluate.grid([np.full((4, 4, 3), 9, np.uint8)] * 3, tmp_path / "g.png", columns=2)
    with Image.open(tmp_path / "g.png") as sheet:
        assert sheet.size == (8, 8)


def test_composed_prompts_have_the_articles_that_captions_have():
    prompts = evaluate.composed_prompts(part("judged"))
    assert prompts[0] == "a blue exploding head"
    assert "a photo of an exploding head on a red background" in prompts
    assert "an exploding head and a toilet paper roll" in prompts
    assert not [prompt for prompt in prompts if re.search(r"\ba [aeio]", prompt)]


def test_focus_draws_the_noisy_timesteps_more_often():
    seen = []

    def silent(x_t, t_B, _):
        seen.append(t_B)
        return SimpleNamespace(sample=torch.zeros_like(x_t))

    for focus in (1.0, 2.0):
        unet.objective(silent, torch.zeros(400, 1, 2, 2), torch.zeros(400, 2, 3), unet.Noising.capped(),
                       generator(1, 1), focus=focus)  # fmt: skip
    evenly, favoured = ((t_B >= 500).float().mean().item() for t_B in seen)
    assert evenly == pytest.approx(1 / 2, abs=0.01)
    assert favoured == pytest.approx(3 / 4, abs=0.01)  # P(u ** (1 / 2) >= 1 / 2)


def test_the_unet_is_shown_more_and_more_and_a_trained_one_everything_at_once():
    config = unet.UNetConfig(focus=2.0, detail=1.0, coarse=0.5, simple=0.25, schedule=Schedule(steps=8, lr=1.0))
    assert [config.curriculum(step) for step in (0, 1, 2, 4)] == [(1.0, 2.0), (0.5, 2.0), (0.0, 2.0), (0.0, 1.0)]
    assert config.trained_on().curriculum(0) == (0.0, 1.0)
