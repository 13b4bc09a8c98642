"""What `cp_train/bench.py` compares with: a straightforward loop in the manner of diffusers' training examples.

Every step encodes its pictures with the VAE and its prompts with the text encoder, and trains a peft LoRA on the
cross-attention keys and values and the embedding of one new token, in float32: the same base, weights, batch and
optimizer as `cp_train`'s plain step, without its caches and its packed keys and values.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cp_train.denoise import LoopConfig
from services.base_model import resolve

CONCEPT = "<bench>"
PROMPTS = (f"a photo of a {CONCEPT}", f"a photo of a {CONCEPT} toy")


class DiffusersLoop:
    """The loop; `advance` makes one step.

    Args:
        reference: of the base.
        pixels_NCHW: the concept's pictures in [-1, 1].
        config: batch size, rates and seed.
        rank: of the LoRA.
        device: where it trains.
    """

    def __init__(
        self, reference: str, pixels_NCHW: Tensor, config: LoopConfig, *, rank: int, device: torch.device
    ) -> None:
        from diffusers import DDPMScheduler, StableDiffusionPipeline
        from peft import LoraConfig

        pipeline = StableDiffusionPipeline.from_pretrained(resolve(reference), dtype=torch.float32).to(device)
        self.unet, self.vae, self.text_encoder = pipeline.unet, pipeline.vae, pipeline.text_encoder
        self.schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
        for module in (self.unet, self.vae, self.text_encoder):
            module.requires_grad_(requires_grad=False)
        self.unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=["attn2.to_k", "attn2.to_v"]))
        self.ids = self._add_token(pipeline.tokenizer).to(device)
        self.pixels_NCHW, self.config = pixels_NCHW.to(device), config
        self.generator = torch.Generator().manual_seed(config.seed)
        lora = [parameter for parameter in self.unet.parameters() if parameter.requires_grad]
        groups = [{"params": lora, "lr": config.lr}, {"params": [self.table], "lr": config.token_lr}]
        self.optimizer = torch.optim.AdamW(groups)

    def _add_token(self, tokenizer: Any) -> Tensor:
        """The prompts' ids, after the token was added; its whole table is trained and all other rows put back."""
        tokenizer.add_tokens([CONCEPT])
        self.text_encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        self.table = self.text_encoder.get_input_embeddings().weight.requires_grad_()
        self.kept = self.table.detach()[:-1].clone()
        options = {"padding": "max_length", "max_length": tokenizer.model_max_length, "return_tensors": "pt"}
        ids: Tensor = tokenizer(list(PROMPTS), **options).input_ids
        return ids

    def advance(self) -> float:
        """One step; returns its loss."""
        size = self.config.batch_size
        picked = torch.randint(len(self.pixels_NCHW), (size,), generator=self.generator)
        with torch.no_grad():
            latents = self.vae.encode(self.pixels_NCHW[picked]).latent_dist.sample() * self.vae.config.scaling_factor
        noise = torch.randn(latents.shape, generator=self.generator).to(latents)
        t = torch.randint(self.schedule.config.num_train_timesteps, (size,), generator=self.generator).to(
            latents.device
        )
        context = self.text_encoder(self.ids[torch.randint(len(self.ids), (size,), generator=self.generator)])[0]
        predicted = self.unet(self.schedule.add_noise(latents, noise, t), t, context).sample
        velocity = self.schedule.config.prediction_type == "v_prediction"
        loss = functional.mse_loss(predicted, self.schedule.get_velocity(latents, noise, t) if velocity else noise)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            self.table[:-1] = self.kept
        return loss.item()
