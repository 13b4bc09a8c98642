"""The running batch as stacked tensors: a drawing that joins or leaves writes its own row, and nothing is restacked.

With guidance a drawing takes two rows of the U-Net's batch. Guided drawings come first, so that with N drawings, G of
them guided, the rows are

    negative prompts G-1 .. 0 | prompts 0 .. N-1

around a fixed middle of one buffer of keys and values: any batch is a contiguous slice of it, and a drawing's keys and
values are written once, when it joins. Letters: N drawings, R rows, L tokens, K packed width.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cp_serve.samplers import Table
from services.base_model import BaseModel

Unet = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""x_RCHW, t_R, kv_RLK, G -> what the U-Net predicts. Row r < G has latent and timestep of row 2 G - 1 - r."""


@dataclass(eq=False)
class Drawing:
    """One image on its way.

    Attributes:
        table: the sampler's steps.
        kv_RLK: keys and values of negative prompt and prompt; a single row draws without guidance.
        guidance: classifier-free guidance scale.
        latent_CHW: the present latent; noise of unit variance at first. Not kept up while in the batch.
        person: whose it is.
        previews: after which steps the predicted picture is shown to `report`.
        report: called with the number of steps done after each step, and with a preview's picture when it is decoded.
        before_CHW: the picture predicted at the step before.
        step: steps done.
        submitted, started: time.monotonic() when it was submitted, and at its first step.
        picture: resolves to uint8 [H, W, 3]; cancelling it takes the drawing out before the next step.
    """

    table: Table
    kv_RLK: Tensor
    guidance: float
    latent_CHW: Tensor
    person: str = ""
    previews: frozenset[int] = frozenset()
    report: Callable[[int, Tensor | None], None] | None = None
    before_CHW: Tensor | None = None
    step: int = 0
    submitted: float = 0.0
    started: float = 0.0
    picture: "Future[Tensor]" = field(default_factory=Future)

    @property
    def rows(self) -> int:
        """Rows of the U-Net's batch that it takes."""
        return len(self.kv_RLK)

    @property
    def remaining(self) -> int:
        """Steps to go."""
        return len(self.table) - self.step


class Batch:
    """Up to `capacity` drawings, each at a step of its own.

    Args:
        base: what draws.
        unet: its U-Net, as it is run.
        buckets: numbers of rows that the U-Net is run with, ascending, the last at least 2 * capacity; none: any.

    Attributes:
        drawings: those in the batch; the guided ones first.
    """

    def __init__(self, base: BaseModel, unet: Unet, capacity: int, *, buckets: Sequence[int] = ()) -> None:
        self._unet, self._middle, self._buckets = unet, capacity, tuple(buckets)
        self._dtype, self._device = base.unet.dtype, base.device
        side = int(base.unet.config.sample_size)
        length, width = base.tokenizer.model_max_length, base.packed_width
        self._x_NCHW = torch.zeros(capacity, base.latent_channels, side, side, device=self._device)
        self._before_NCHW = torch.zeros_like(self._x_NCHW)
        self._kv_RLK = torch.zeros(2 * capacity, length, width, device=self._device, dtype=self._dtype)
        order = torch.arange(capacity, device=self._device)
        self._drawing_of_row_R = torch.cat([order.flip(0), order])
        self.drawings: list[Drawing] = []
        self._guided = 0

    @property
    def rows(self) -> int:
        """Rows of the U-Net's batch that are in use."""
        return len(self.drawings) + self._guided

    def join(self, drawing: Drawing) -> None:
        """Take a drawing in, where it was left or at its beginning.

        Raises:
            ValueError: its tensors are not of this base; nothing was changed.
        """
        place = len(self.drawings)
        shapes = (drawing.latent_CHW.shape, drawing.kv_RLK.shape[1:])
        if shapes != (self._x_NCHW.shape[1:], self._kv_RLK.shape[1:]) or drawing.rows > 2:  # noqa: PLR2004
            raise ValueError(f"a drawing of another base: {shapes}")
        self.drawings.append(drawing)
        self._write(place, drawing)
        if drawing.rows > 1:
            self._swap(place, self._guided)
            self._kv_RLK[self._middle - 1 - self._guided] = drawing.kv_RLK[0].to(self._kv_RLK)
            self._guided += 1

    def leave(self, drawing: Drawing) -> None:
        """Let a drawing go; it keeps its state and may join again."""
        place = self.drawings.index(drawing)
        drawing.latent_CHW, drawing.before_CHW = self._x_NCHW[place].clone(), self._before_NCHW[place].clone()
        if drawing.rows > 1:
            self._guided -= 1
            last = self._middle - 1 - self._guided
            self._kv_RLK[self._middle - 1 - place] = self._kv_RLK[last]
            self._swap(place, self._guided)
            place = self._guided
        self._swap(place, len(self.drawings) - 1)
        self.drawings.pop()

    def step(self) -> Tensor:
        """One denoising step of every drawing, each at its own timestep; the predicted pictures x0_NCHW."""
        count, guided = len(self.drawings), self._guided
        now = [(*drawing.table.rows[drawing.step], drawing.guidance) for drawing in self.drawings]
        columns = torch.tensor(now, device=self._device).T.contiguous()
        t_N, (p, q, a, b, c, guidance) = columns[0], columns[1:].view(6, count, 1, 1, 1)
        x, before = self._x_NCHW[:count], self._before_NCHW[:count]
        predicted, prompts = self._predict(t_N)
        output = predicted[prompts : prompts + count]
        if guided:
            uncond, cond = predicted[prompts - guided : prompts].flip(0), output[:guided]
            output = torch.cat([uncond + guidance[:guided] * (cond - uncond), output[guided:]])
        x0: Tensor = p * x + q * output
        x.copy_(a * x + b * x0 + c * before)
        before.copy_(x0)
        for drawing in self.drawings:
            drawing.step += 1
        return x0

    def _predict(self, t_N: Tensor) -> tuple[Tensor, int]:
        """The U-Net's output, float32, and the row at which the prompts begin."""
        first, rows = self._middle - self._guided, self._bucket(self.rows)
        first = min(first, len(self._kv_RLK) - rows)
        drawing_R = self._drawing_of_row_R[first : first + rows].clamp_max(len(self.drawings) - 1)
        x_RCHW = self._x_NCHW.index_select(0, drawing_R).to(self._dtype)
        twins = 0 if self._buckets else self._guided  # rows beyond those in use may come before them
        predicted = self._unet(x_RCHW, t_N.index_select(0, drawing_R), self._kv_RLK[first : first + rows], twins)
        return predicted.float(), self._middle - first

    def _bucket(self, rows: int) -> int:
        return next((bucket for bucket in self._buckets if bucket >= rows), rows)

    def latent(self, drawing: Drawing) -> Tensor:
        """The present latent [C, H, W] of a drawing in the batch."""
        latent: Tensor = self._x_NCHW[self.drawings.index(drawing)].clone()
        return latent

    def _write(self, place: int, drawing: Drawing) -> None:
        """Put a drawing's latents and prompt into its rows."""
        fresh = drawing.step == 0
        self._x_NCHW[place] = drawing.latent_CHW * (drawing.table.start if fresh else 1.0)
        self._before_NCHW[place] = 0.0 if drawing.before_CHW is None else drawing.before_CHW
        self._kv_RLK[self._middle + place] = drawing.kv_RLK[-1].to(self._kv_RLK)

    def _swap(self, one: int, other: int) -> None:
        """Let two drawings change places, but for their negative prompts."""
        if one == other:
            return
        self.drawings[one], self.drawings[other] = self.drawings[other], self.drawings[one]
        for rows, offset in ((self._x_NCHW, 0), (self._before_NCHW, 0), (self._kv_RLK, self._middle)):
            i, j = offset + one, offset + other
            rows[[i, j]] = rows[[j, i]]
