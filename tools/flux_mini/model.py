"""The parts of flux-mini, stock diffusers and transformers classes, and their initial weights."""

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from tools.flux_mini.latents import CHANNELS
from tools.flux_mini.words import BOS, EOS, PAD, TEXT_LENGTH, VOCABULARY

TEXT_WIDTH = 64
WIDTH = 192
HEAD_WIDTH = 64
DOUBLE_BLOCKS = 2
SINGLE_BLOCKS = 3
TOKEN_CHANNELS = 4 * CHANNELS  # FLUX packs 2x2 latent pixels into a token
VAE_CHANNELS = (12, 24, 40, 64, 48, 48)


def build_vae() -> AutoencoderKL:
    """A 32x autoencoder: five halvings, so a token stands for 64x64 pixels. Latents are unit-scaled
    by construction.
    """
    levels = len(VAE_CHANNELS)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=VAE_CHANNELS,
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=1,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.0,
        shift_factor=0.0,
        sample_size=512,
        force_upcast=False,
    )


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Plain flow matching: timesteps n/n ... 1/n, no shift."""
    return FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False)


def build_clip() -> CLIPTextModel:
    """The pooled-text encoder. eos_token_id is not 2, so pooling takes the first end token."""
    config = CLIPTextConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TEXT_LENGTH,
        bos_token_id=VOCABULARY[BOS],
        eos_token_id=VOCABULARY[EOS],
        pad_token_id=VOCABULARY[PAD],
        projection_dim=TEXT_WIDTH,
    )
    return CLIPTextModel(config)


def build_t5() -> T5EncoderModel:
    """The per-word text encoder."""
    config = T5Config(
        vocab_size=len(VOCABULARY),
        d_model=TEXT_WIDTH,
        d_kv=32,
        d_ff=4 * TEXT_WIDTH,
        num_layers=2,
        num_heads=2,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=32,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        is_encoder_decoder=False,
        use_cache=False,
        pad_token_id=VOCABULARY[PAD],
        eos_token_id=VOCABULARY[EOS],
    )
    return T5EncoderModel(config)


def build_transformer() -> FluxTransformer2DModel:
    """FLUX at width 192. Wide heads give RoPE enough frequencies per axis: it is the only source of
    position.
    """
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=TOKEN_CHANNELS,
        num_layers=DOUBLE_BLOCKS,
        num_single_layers=SINGLE_BLOCKS,
        attention_head_dim=HEAD_WIDTH,
        num_attention_heads=WIDTH // HEAD_WIDTH,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        guidance_embeds=False,
        axes_dims_rope=(4, 30, 30),
    )
    init_transformer(model)
    return model


@torch.no_grad()
def init_transformer(model: FluxTransformer2DModel) -> None:
    """Start from "velocity = noisy latent", with attention that is positional from the first step.

    The embedder copies the token into the first dims and fills the rest with constants of +-2, so
    that LayerNorm is nearly linear and queries have a part that does not depend on content; the
    output layer reads the copied dims back. Modulation starts at zero, so that every block starts
    as the identity.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and (
            ".norm1" in name or ".norm." in name or "norm_out" in name
        ):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
        if name.endswith(("norm_q", "norm_k", "norm_added_q", "norm_added_k")):
            nn.init.constant_(module.weight, 1.5)
    embed = model.x_embedder
    nn.init.zeros_(embed.weight)
    embed.weight[:TOKEN_CHANNELS] = torch.eye(TOKEN_CHANNELS)
    nn.init.zeros_(embed.bias)
    rest = WIDTH - TOKEN_CHANNELS
    embed.bias[TOKEN_CHANNELS:] = 2.0 * (2.0 * (torch.arange(rest) % 2) - 1.0)
    out = model.proj_out
    nn.init.zeros_(out.weight)
    # After LayerNorm the copied dims are scaled by about 1/std of (56 unit + 136 of size 2), i.e.
    # about 1/1.76.
    out.weight[:, :TOKEN_CHANNELS] = 1.76 * torch.eye(TOKEN_CHANNELS)
    nn.init.zeros_(out.bias)
