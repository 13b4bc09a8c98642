"""Samplers as tables of coefficients, so that every image of a batch may be at a step, and of a sampler, of its own.

A deterministic sampler's step is linear in the latent x, the U-Net's output m and the picture predicted a step ago.
With the schedule's alpha_i and sigma_i (alpha^2 + sigma^2 = 1) at this step, alpha' and sigma' at the next:

    x0_i    = p x_i + q m_i                     the predicted picture
    x_{i+1} = a x_i + b x0_i + c x0_{i-1}

    epsilon:        p = 1 / alpha    q = -sigma / alpha
    v_prediction:   p = alpha        q = -sigma

First order (DDIM, Song et al., arXiv 2010.02502, eta = 0; Euler on the probability-flow ODE, Karras et al.,
arXiv 2206.00364, in these variables is the same map):

    a = sigma' / sigma    b = alpha' - alpha sigma' / sigma    c = 0

DPM-Solver++ 2M (Lu et al., arXiv 2211.01095, midpoint), with lambda = log(alpha / sigma), h = lambda' - lambda and r =
h of the step before / h, adds b / (2 r) (x0_i - x0_{i-1}); its first step and its last one are of first order.

What tells the samplers apart besides is which timesteps they visit: those of diffusers' scheduler of that name, made
from the base's own configuration. Some spacings start Euler's latent at another scale (`start`). The last sigma is 0.
Where a schedule with zero terminal SNR has alpha = 0, diffusers' Euler and DPM-Solver++ take alpha^2 = 2^-24, and so do
these; predicting noise from pure noise has no answer (p is infinite), so that such a base must predict velocity.

The predicted picture is a latent and never clipped: `StableDiffusionPipeline` switches a schedule's `clip_sample` off.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from services.base_model import PREDICTION_TYPES, BaseModel
from services.errors import InputError, RefusedError

_DPM = {
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "solver_type": "midpoint",
    "final_sigmas_type": "zero",
    "lower_order_final": True,
    "euler_at_final": False,
}
_PLAIN = dict.fromkeys(("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"), False)
_SCHEDULERS: dict[str, tuple[str, dict[str, object]]] = {
    "ddim": ("DDIMScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {**_DPM, **_PLAIN, "use_flow_sigmas": False, "thresholding": False}),
    "euler": ("EulerDiscreteScheduler", {**_PLAIN, "interpolation_type": "linear", "final_sigmas_type": "zero"}),
}
SAMPLERS = tuple(_SCHEDULERS)


@dataclass(frozen=True, eq=False)
class Table:
    """One request's steps.

    Attributes:
        rows: for each step (t, p, q, a, b, c), as plain numbers.
        start: what noise of unit variance is multiplied by before the first step.
    """

    rows: tuple[tuple[float, ...], ...]
    start: float = 1.0

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, eq=False)
class _Nodes:
    """Timesteps, and alpha and sigma at each and after each; float64 [steps]."""

    t: Tensor
    alpha: Tensor
    sigma: Tensor
    alpha_after: Tensor
    sigma_after: Tensor
    start: float = 1.0


def scheduler_of(base: BaseModel, sampler: str) -> Any:
    """The diffusers scheduler that a sampler is held against.

    Raises:
        InputError: there is no such sampler.
    """
    if sampler not in _SCHEDULERS:
        raise InputError(f"sampler: there is no {sampler!r}; choose one of {', '.join(SAMPLERS)}.", param="sampler")
    import diffusers

    name, fixed = _SCHEDULERS[sampler]
    config = {key: value for key, value in base.scheduler_config.items() if key != "_class_name"}
    return getattr(diffusers, name).from_config(config, **fixed)


@lru_cache(maxsize=1024)
def sampler_table(base: BaseModel, sampler: str, steps: int) -> Table:
    """The table of a sampler over `steps` steps, with the base's own timestep spacing.

    Raises:
        InputError: there is no such sampler, or the base's schedule has too few timesteps.
        RefusedError: the base predicts neither noise nor velocity, or noise where the schedule has no signal at all.
    """
    scheduler = scheduler_of(base, sampler)
    timesteps = scheduler.config.num_train_timesteps
    if steps > timesteps:
        raise InputError(f"steps: this base's schedule has {timesteps}, not {steps}.", param="steps")
    if base.prediction_type not in PREDICTION_TYPES:
        raise RefusedError(
            f"This base predicts {base.prediction_type!r}; only {' and '.join(PREDICTION_TYPES)} can be drawn."
        )
    scheduler.set_timesteps(steps)
    nodes = _ddim_nodes(scheduler, steps) if sampler == "ddim" else _sigma_nodes(scheduler, steps)
    if (nodes.t.diff() >= 0).any():
        raise InputError(f"steps: this base's schedule is too short for {steps} steps of {sampler}.", param="steps")
    no_signal = scheduler.config.get("rescale_betas_zero_snr", False) and nodes.t[0] == timesteps - 1
    if no_signal and base.prediction_type == "epsilon":
        raise RefusedError("This base predicts noise on a schedule with zero terminal SNR; that cannot be drawn.")
    return _table(base.prediction_type, nodes, multistep=sampler == "dpmpp_2m")


def _ddim_nodes(scheduler: Any, steps: int) -> _Nodes:
    """DDIM steps by a fixed number of timesteps, whatever the spacing is."""
    t = scheduler.timesteps.long()[:steps]  # of 61 trailing steps diffusers makes 62, the last one at t = -1
    before = t - scheduler.config.num_train_timesteps // steps
    squares, final = scheduler.alphas_cumprod.double(), scheduler.final_alpha_cumprod.double()
    now, after = squares[t], torch.where(before >= 0, squares[before.clamp_min(0)], final)
    return _Nodes(t.double(), now.sqrt(), (1 - now).sqrt(), after.sqrt(), (1 - after).sqrt())


def _sigma_nodes(scheduler: Any, steps: int) -> _Nodes:
    """Euler and DPM-Solver++ step from sigma to sigma; theirs is sigma / alpha here, and the last one 0."""
    ratio = torch.cat([scheduler.sigmas.double()[:steps], torch.zeros(1, dtype=torch.float64)])
    alpha = (ratio.square() + 1).rsqrt()
    sigma = ratio * alpha
    scaled = type(scheduler).__name__ == "EulerDiscreteScheduler"
    start = float(scheduler.init_noise_sigma) * float(alpha[0]) if scaled else 1.0
    return _Nodes(scheduler.timesteps[:steps].double(), alpha[:-1], sigma[:-1], alpha[1:], sigma[1:], start)


def _table(prediction_type: str, nodes: _Nodes, *, multistep: bool) -> Table:
    a = nodes.sigma_after / nodes.sigma
    b = nodes.alpha_after - nodes.alpha * a
    c = torch.zeros_like(b)
    if multistep:
        c[1:-1] = -_second_order(nodes) * b[1:-1]
    p, q = _prediction(prediction_type, nodes)
    columns = torch.stack([nodes.t, p, q, a, b - c, c], dim=1)
    return Table(tuple(map(tuple, columns.tolist())), nodes.start)


def _prediction(prediction_type: str, nodes: _Nodes) -> tuple[Tensor, Tensor]:
    if prediction_type == "v_prediction":
        return nodes.alpha, -nodes.sigma
    return 1 / nodes.alpha, -nodes.sigma / nodes.alpha


def _second_order(nodes: _Nodes) -> Tensor:
    """1 / (2 r) of every step but the first and the last."""
    log_snr = (nodes.alpha / nodes.sigma).log()
    h = log_snr.diff()
    return h[1:] / h[:-1] / 2
