"""A version in the formats of other tools.

pytorch_lora_weights.safetensors    diffusers: `pipe.load_lora_weights(folder)`
kohya.safetensors                   ComfyUI, AUTOMATIC1111, kohya's scripts
embeddings/<name>.safetensors       `pipe.load_textual_inversion(file, token="<name>")`, or an embeddings folder
"""

from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from services.adapter import Adapter, Layout, lora_state_dict


def export(adapter: Adapter, layout: Layout, folder: Path) -> list[Path]:
    """Write all formats into a folder; returns the files. The LoRA scale alpha / rank is folded into B."""
    lora = lora_state_dict(layout, adapter.down_PRD, adapter.up_KR * adapter.scale)
    files = {"pytorch_lora_weights.safetensors": lora, "kohya.safetensors": _kohya(lora, adapter.rank)}
    for name, rows in adapter.tokens.items():
        files[f"embeddings/{name}.safetensors"] = {"emb_params": rows.detach().cpu().contiguous()}
    written = []
    for name, tensors in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(save(tensors))
        written.append(path)
    return written


def _kohya(lora: dict[str, Tensor], rank: int) -> dict[str, Tensor]:
    """kohya's names: dots become underscores, A is `lora_down`, B is `lora_up`, alpha stands beside them."""
    renamed = {}
    for key, tensor in lora.items():
        module, _, factor = key.removesuffix(".weight").rpartition(".")
        name = f"lora_{module.replace('.', '_')}"
        renamed[f"{name}.lora_{'down' if factor == 'lora_A' else 'up'}.weight"] = tensor
        renamed[f"{name}.alpha"] = torch.tensor(float(rank))
    return renamed
