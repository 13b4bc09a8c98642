"""The adapter: LoRA on the U-Net's cross-attention keys and values, and one embedding per concept.

All projections of one U-Net read the same text embedding, so the whole LoRA is two packed tensors (legend:
P projections, R rank, D text width, K sum of the projections' widths):

    down_PRD   the factors A, one per projection        up_KR   the factors B, stacked along K
    dW_p = (alpha / R) * B_p A_p                        (Hu et al., LoRA, arXiv 2106.09685)

On disk they have the names that diffusers and peft use, so `adapter.safetensors` loads with `load_lora_weights`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from services.errors import RefusedError
from services.manifest import ADAPTER_FILE, STATE_FILE, TOKENS_FILE, Concept, Content, FileRef, sha256

MAX_FILE_BYTES = 2**31


@dataclass(frozen=True)
class Projection:
    """One `to_k` or `to_v`: its module path in the U-Net and its output width."""

    name: str
    width: int


@dataclass(frozen=True)
class Layout:
    """The cross-attention projections of one U-Net, in the order in which everything is packed."""

    projections: tuple[Projection, ...]
    text_width: int

    @property
    def widths(self) -> list[int]:
        """Output width of each projection."""
        return [projection.width for projection in self.projections]

    @property
    def total(self) -> int:
        """K, the sum of the widths."""
        return sum(self.widths)


@dataclass(frozen=True, eq=False)
class Adapter:
    """One version's weights, float32. Immutable: training makes a new one.

    Attributes:
        down_PRD, up_KR: the LoRA factors.
        alpha: the LoRA scale is alpha / rank.
        tokens: concept name -> embeddings [vectors, text width], in the order learned.
    """

    down_PRD: Tensor
    up_KR: Tensor
    alpha: float
    tokens: Mapping[str, Tensor]

    @property
    def rank(self) -> int:
        """R."""
        return self.down_PRD.shape[1]

    @property
    def scale(self) -> float:
        """Alpha / rank."""
        return self.alpha / self.rank

    def to(self, device: torch.device) -> "Adapter":
        """The same adapter on another device."""
        tokens = {name: rows.to(device) for name, rows in self.tokens.items()}
        return replace(self, down_PRD=self.down_PRD.to(device), up_KR=self.up_KR.to(device), tokens=tokens)

    def bytes(self) -> int:
        """Memory of its tensors, in bytes."""
        return sum(t.nbytes for t in (self.down_PRD, self.up_KR, *self.tokens.values()))


def new_adapter(layout: Layout, *, rank: int, alpha: float | None = None, seed: int = 0) -> Adapter:
    """An adapter that changes nothing yet: A uniform as in peft (Kaiming, a = sqrt 5), B = 0, no concepts."""
    bound = layout.text_width**-0.5
    generator = torch.Generator().manual_seed(seed)
    shape = (len(layout.projections), rank, layout.text_width)
    down = (torch.rand(shape, generator=generator) * 2 - 1) * bound
    return Adapter(down, torch.zeros(layout.total, rank), float(rank if alpha is None else alpha), {})


@dataclass(frozen=True, eq=False)
class TrainingState:
    """What only training on reads: the accumulated Fisher information of the LoRA, shaped like it."""

    down_PRD: Tensor
    up_KR: Tensor

    def to(self, device: torch.device) -> "TrainingState":
        """The same on another device."""
        return TrainingState(self.down_PRD.to(device), self.up_KR.to(device))


def lora_state_dict(layout: Layout, down_PRD: Tensor, up_KR: Tensor) -> dict[str, Tensor]:
    """Packed factors under the names of diffusers: `unet.<module>.lora_A.weight` and `.lora_B.weight`."""
    state = {}
    for projection, down, up in zip(layout.projections, down_PRD, up_KR.split(layout.widths), strict=True):
        state[f"unet.{projection.name}.lora_A.weight"] = down.detach().cpu().contiguous()
        state[f"unet.{projection.name}.lora_B.weight"] = up.detach().cpu().contiguous()
    return state


def encode(adapter: Adapter, fisher: TrainingState, layout: Layout) -> dict[str, bytes]:
    """The version's tensor files: file name -> bytes. The same weights give the same bytes."""
    tokens = {name: rows.detach().cpu().contiguous() for name, rows in adapter.tokens.items()}
    return {
        ADAPTER_FILE: save(lora_state_dict(layout, adapter.down_PRD, adapter.up_KR)),
        TOKENS_FILE: save(tokens),
        STATE_FILE: save(lora_state_dict(layout, fisher.down_PRD, fisher.up_KR)),
    }


def file_refs(files: Mapping[str, bytes]) -> dict[str, FileRef]:
    """The manifest's entries for some files."""
    return {name: FileRef(sha256=sha256(data), bytes=len(data)) for name, data in files.items()}


def decode(content: Content, layout: Layout, files: Mapping[str, bytes]) -> Adapter:
    """The adapter out of verified files.

    Raises:
        RefusedError: a digest, key, shape, type, rank or number is not what the manifest and the base say.
    """
    check_digests(content, files, (ADAPTER_FILE, TOKENS_FILE))
    down, up = _decode_lora(files[ADAPTER_FILE], ADAPTER_FILE, layout, content.rank)
    tokens = _decode_tokens(files[TOKENS_FILE], content.concepts, layout.text_width)
    return Adapter(down, up, content.alpha, tokens)


def decode_state(content: Content, layout: Layout, data: bytes) -> TrainingState:
    """The Fisher information out of its verified file. Raises `RefusedError` as `decode` does."""
    check_digests(content, {STATE_FILE: data}, (STATE_FILE,))
    state = TrainingState(*_decode_lora(data, STATE_FILE, layout, content.rank))
    if (state.down_PRD < 0).any() or (state.up_KR < 0).any():
        raise RefusedError(f"{STATE_FILE}: Fisher information cannot be negative.")
    return state


def check_digests(content: Content, files: Mapping[str, bytes], names: tuple[str, ...]) -> None:
    """Raise `RefusedError` unless each named file is exactly the one that the manifest names."""
    for name in names:
        reference = content.files.get(name)
        if reference is None or name not in files:
            raise RefusedError(f"{name} is missing from the version.")
        if len(files[name]) != reference.bytes or sha256(files[name]) != reference.sha256:
            raise RefusedError(f"{name} is damaged: its bytes do not match the manifest's digest.")


def _decode_lora(data: bytes, name: str, layout: Layout, rank: int) -> tuple[Tensor, Tensor]:
    tensors = _load(data, name)
    shapes = {}
    for projection in layout.projections:
        shapes[f"unet.{projection.name}.lora_A.weight"] = (rank, layout.text_width)
        shapes[f"unet.{projection.name}.lora_B.weight"] = (projection.width, rank)
    _check_tensors(name, tensors, shapes)
    keys = [f"unet.{projection.name}.lora_" for projection in layout.projections]
    down = torch.stack([tensors[f"{key}A.weight"] for key in keys])
    return down, torch.cat([tensors[f"{key}B.weight"] for key in keys])


def _decode_tokens(data: bytes, concepts: tuple[Concept, ...], text_width: int) -> dict[str, Tensor]:
    tensors = _load(data, TOKENS_FILE)
    _check_tensors(TOKENS_FILE, tensors, {c.name: (c.vectors, text_width) for c in concepts})
    return {concept.name: tensors[concept.name] for concept in concepts}


def _load(data: bytes, name: str) -> dict[str, Tensor]:
    if len(data) > MAX_FILE_BYTES:
        raise RefusedError(f"{name} has {len(data)} bytes; at most {MAX_FILE_BYTES} are read.")
    try:
        tensors: dict[str, Tensor] = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise RefusedError(f"{name} is not a safetensors file.") from error
    return tensors


def _check_tensors(name: str, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    if tensors.keys() != shapes.keys():
        missing, extra = len(shapes.keys() - tensors.keys()), len(tensors.keys() - shapes.keys())
        raise RefusedError(f"{name} does not fit this base model: {missing} tensors missing, {extra} unknown.")
    for key, tensor in tensors.items():
        if tensor.dtype != torch.float32 or tuple(tensor.shape) != shapes[key]:
            found = f"{tensor.dtype} {tuple(tensor.shape)}"
            raise RefusedError(f"{name}: {key} is {found}, expected float32 {shapes[key]}.")
        if not torch.isfinite(tensor).all():
            raise RefusedError(f"{name}: {key} holds numbers that are not finite.")
