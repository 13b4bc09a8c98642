"""Who is let in, who is told to come again and when, and that nobody starves."""

import pytest
from torch import Tensor

from cp_serve.engine import Engine, Places
from services.base_model import BaseModel
from services.errors import BusyError, DeadlineError, InputError, QuotaError
from tests.cp_serve.drawings import NEAR, PATIENCE, Gate, Wish, alone, distance, engine_of


def paced(engine: Engine, seconds_a_row: float) -> Engine:
    """An engine that believes its steps take so long, and has nothing to draw."""
    engine.pace.measure(1, seconds_a_row)
    return engine


def refused(engine: Engine, places: Places, *, seconds: float | None = None) -> BusyError:
    with pytest.raises(BusyError) as error, engine.places(places, seconds=seconds):
        pass
    return error.value


def test_a_full_queue_says_when_there_will_be_room(tiny_base: BaseModel) -> None:
    with engine_of(tiny_base, max_batch=2, max_queue=2) as engine:
        paced(engine, 1.0)
        with engine.places(Places(2, steps=10, rows=1)), engine.places(Places(2, steps=30, rows=1)):
            assert refused(engine, Places(1, steps=1)).retry_after == pytest.approx(20), "10 steps of 2 rows"
            assert refused(engine, Places(3, steps=1)).retry_after == pytest.approx(80)


def test_a_crowd_is_refused_by_one_look_at_the_queue(tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    with engine_of(tiny_base, max_batch=1, max_queue=1) as engine:
        honest = engine._releases
        monkeypatch.setattr(engine, "_releases", lambda: [looks.append(1), honest()][1])
        monkeypatch.setattr("cp_serve.engine._FRESH", 60.0)
        for holders in (1, 2):
            with engine.places(Places(2, steps=5)):
                for _ in range(50):
                    refused(engine, Places(1, steps=5))
            assert len(looks) == holders, "others hold the places now"


def test_what_cannot_be_done_in_time_is_refused_at_once(tiny_base: BaseModel) -> None:
    with engine_of(tiny_base, max_batch=2) as engine:
        paced(engine, 1.0)
        with engine.places(Places(2, steps=10, rows=1), seconds=20):
            waits = refused(engine, Places(2, steps=10, rows=1), seconds=30)
            assert waits.retry_after == pytest.approx(10), "after 10 seconds there are 30 left for what takes 40"
            with pytest.raises(DeadlineError, match="30 seconds"), engine.places(Places(2, steps=16), seconds=30):
                pass
            assert engine.load == 2
            with engine.places(Places(1, steps=5, rows=1), seconds=60):
                assert engine.load == 3
        assert engine.load == 0


def test_places_are_given_back_when_the_whole_request_is_done(tiny_base: BaseModel) -> None:
    """Its first image is done after 10 seconds, and frees nothing."""
    with engine_of(tiny_base, max_batch=1, max_queue=2) as engine:
        paced(engine, 1.0)
        with engine.places(Places(2, steps=10, rows=1)):
            assert refused(engine, Places(2, steps=1)).retry_after == pytest.approx(20)


def test_an_engine_with_nothing_to_do_tries_what_it_believes_to_take_a_little_too_long(tiny_base: BaseModel) -> None:
    """Its pace may be that of a busier hour, and would never be learned anew if everything were refused."""
    with engine_of(tiny_base, max_batch=2) as engine:
        paced(engine, 1.0)
        with engine.places(Places(2, steps=10, rows=1), seconds=10):
            pass
        with pytest.raises(DeadlineError), engine.places(Places(2, steps=10, rows=1), seconds=4):
            pass


def test_the_first_step_of_a_size_says_nothing_of_the_pace(tiny_base: BaseModel) -> None:
    with engine_of(tiny_base) as engine:
        for seed, known in ((1, False), (2, True)):
            drawing = Wish(steps=1, seed=seed).drawing(tiny_base)
            engine.submit([drawing])
            drawing.picture.result(PATIENCE)
            assert (engine.pace.seconds(2) > 0) is known


def test_what_will_never_fit_is_not_told_to_come_again(tiny_base: BaseModel) -> None:
    with engine_of(tiny_base, max_batch=2, max_queue=3) as engine:
        with pytest.raises(InputError, match="6 images") as error, engine.places(Places(6, steps=1)):
            pass
        assert error.value.param == "n"
    with pytest.raises(InputError, match="request_bytes"):
        Engine(tiny_base, max_batch=1, max_queue=1, max_bytes=1000)


def test_nobody_has_more_than_half_of_the_places_but_whoever_has_no_name(tiny_base: BaseModel) -> None:
    with engine_of(tiny_base, max_batch=4, max_queue=4) as engine:
        paced(engine, 1.0)
        with engine.places(Places(4, steps=5, rows=1, person="ann")):
            with pytest.raises(QuotaError, match="yours") as error, engine.places(Places(1, steps=5, person="ann")):
                pass
            assert error.value.retry_after == pytest.approx(20)
            with engine.places(Places(4, steps=5, person="bob")):
                assert engine.load == 8
        with engine.places(Places(4, steps=5)), engine.places(Places(4, steps=5)):
            assert engine.load == 8


def test_keys_and_values_need_memory(tiny_base: BaseModel) -> None:
    row = tiny_base.tokenizer.model_max_length * tiny_base.layout.total * 4
    engine = Engine(tiny_base, max_batch=8, max_queue=8, max_bytes=5 * row)
    try:
        with engine.places(Places(8, steps=5)), engine.places(Places(1, steps=5)):
            assert refused(engine, Places(1, steps=5)).retry_after
            with engine.places(Places(1, steps=5, rows=1)):
                assert engine.load == 10
        with engine.places(Places(1, steps=5)):
            assert engine.load == 1
    finally:
        engine.stop()


def test_a_short_picture_is_done_long_before_the_eight_long_ones_that_came_first(tiny_base: BaseModel) -> None:
    """And those, parked meanwhile, become what they would have become."""
    long = [Wish(person="ann", steps=100, seed=seed).drawing(tiny_base) for seed in range(8)]
    short = Wish(person="bob", steps=3, seed=9).drawing(tiny_base)
    with Gate(tiny_base) as gate, engine_of(tiny_base, max_batch=4) as engine:
        engine.submit(long)
        gate.arrived()
        engine.submit([short])
        gate.let(4)  # the step on its way, and three in which bob has a place
        assert short.picture.result(PATIENCE).any()
        assert engine.steps_done == 4
        assert max(drawing.step for drawing in long) <= 5
        gate.open()
        pictures: list[Tensor] = [drawing.picture.result(PATIENCE) for drawing in long]
    for seed in (0, 3, 7):
        assert distance(pictures[seed], alone(tiny_base, Wish(steps=100, seed=seed))) <= NEAR


def test_the_pace_is_learned_before_anybody_comes(tiny_base: BaseModel) -> None:
    with engine_of(tiny_base) as engine:
        engine.warm_up()
        steps = engine.steps_done
        assert steps
        assert min(engine.pace.seconds(2), engine.pace.seconds(16)) > 0
        with pytest.raises(DeadlineError), engine.places(Places(8, steps=10**9), seconds=1.0):
            pass
        assert engine.steps_done == steps, "nothing of it was tried"
