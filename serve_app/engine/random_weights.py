"""FLUX.1 pipelines with random weights: right classes, shapes and cost, noise for pictures.

Data flow: a shape (`schnell` or `dev`) and a scale (`tiny` or `full`) -> component configs ->
`FluxPipeline` built on the device, or saved as an ordinary diffusers folder. `tiny` serves tests
(seconds to build, cheap on a CPU); `full` has the true sizes of FLUX.1, for benchmarks without
weights. Must not import anything of the engine: it stands in for files, not for the engine.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from tokenizers import pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

Shape = Literal["schnell", "dev"]
Scale = Literal["tiny", "full"]

CLIP_TOKENS = 77  # positions of CLIP-L; its text encoder knows no more
T5_TOKENS = 512  # model_max_length in the folders of FLUX.1
T5_SENTINELS = 100  # the <extra_id_*> tokens that every T5 vocabulary ends with


@dataclass(frozen=True)
class _Sizes:
    """What differs between the true FLUX.1 and its stand-in for tests."""

    transformer: dict[str, Any]
    vae: dict[str, Any]
    clip: dict[str, Any]
    t5: dict[str, Any]


_FULL = _Sizes(
    transformer={},  # the class defaults of FluxTransformer2DModel are FLUX.1
    vae={
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "sample_size": 1024,
    },
    clip={
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    },
    t5={
        "vocab_size": 32128,
        "d_model": 4096,
        "d_kv": 64,
        "d_ff": 10240,
        "num_layers": 24,
        "num_heads": 64,
    },
)
_TINY = _Sizes(
    transformer={
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 32,
        "axes_dims_rope": (4, 6, 6),
    },
    vae={
        "block_out_channels": (8, 8, 16, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": 64,
    },
    clip={
        "vocab_size": 514,  # 256 bytes, 256 word-final bytes, start and end of text
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    t5={
        "vocab_size": 512,
        "d_model": 32,
        "d_kv": 16,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 2,
    },
)
_SIZES: dict[Scale, _Sizes] = {"tiny": _TINY, "full": _FULL}


def random_pipeline(
    shape: Shape, scale: Scale, device: str, dtype: torch.dtype, seed: int = 0
) -> FluxPipeline:
    """Build a FLUX.1 pipeline whose weights are drawn on `device` in `dtype`.

    Drawing them in place is what makes `full` possible: no fp32 copy of 12 billion parameters ever
    stands in host memory.
    """
    sizes = _SIZES[scale]
    dtype_before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.random.fork_rng(), torch.device(device):
            torch.manual_seed(seed)
            transformer = FluxTransformer2DModel(
                guidance_embeds=shape == "dev", **sizes.transformer
            )
            vae = _vae(sizes)
            text_encoder = CLIPTextModel(_clip_config(sizes))
            text_encoder_2 = T5EncoderModel(_t5_config(sizes))
    finally:
        torch.set_default_dtype(dtype_before)
    pipeline = FluxPipeline(
        scheduler=_scheduler(shape),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=_clip_tokenizer(sizes.clip["vocab_size"]),
        text_encoder_2=text_encoder_2,
        tokenizer_2=_t5_tokenizer(sizes.t5["vocab_size"]),
        transformer=transformer,
    )
    for module in (transformer, vae, text_encoder, text_encoder_2):
        module.eval()
    return pipeline


def build_random_flux(
    folder: Path, shape: Shape = "schnell", scale: Scale = "tiny", seed: int = 0
) -> Path:
    """Write a random FLUX.1 as a diffusers folder, named and laid out as on the hub."""
    random_pipeline(shape, scale, "cpu", torch.float32, seed).save_pretrained(folder)
    return folder


def _vae(sizes: _Sizes) -> AutoencoderKL:
    levels = len(sizes.vae["block_out_channels"])
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=16,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
        **sizes.vae,
    )


def _scheduler(shape: Shape) -> FlowMatchEulerDiscreteScheduler:
    if shape == "schnell":
        return FlowMatchEulerDiscreteScheduler(shift=1.0)
    return FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)


def _clip_config(sizes: _Sizes) -> CLIPTextConfig:
    vocab_size = sizes.clip["vocab_size"]
    return CLIPTextConfig(
        max_position_embeddings=CLIP_TOKENS,
        hidden_act="quick_gelu",
        bos_token_id=vocab_size - 2,
        eos_token_id=vocab_size - 1,  # pooling takes the state at this token
        pad_token_id=vocab_size - 1,
        **sizes.clip,
    )


def _t5_config(sizes: _Sizes) -> T5Config:
    return T5Config(feed_forward_proj="gated-gelu", is_encoder_decoder=False, **sizes.t5)


def _clip_tokenizer(vocab_size: int) -> CLIPTokenizer:
    """A byte-level CLIP tokenizer without merges; ids match `_clip_config`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet)]
    tokens += [f"<filler{number}>" for number in range(vocab_size - 2 - len(tokens))]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=CLIP_TOKENS)


def _t5_tokenizer(vocab_size: int) -> T5TokenizerFast:
    """A Unigram tokenizer of single ASCII characters, filled up to the size of the vocabulary."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(chr(code), -3.0) for code in range(33, 127)]
    fillers = vocab_size - T5_SENTINELS - len(pieces)
    pieces += [(f"<filler{number}>", -20.0) for number in range(fillers)]
    pieces += [(f"<extra_id_{number}>", 0.0) for number in reversed(range(T5_SENTINELS))]
    return T5TokenizerFast(
        vocab=pieces,
        extra_ids=T5_SENTINELS,
        model_max_length=T5_TOKENS,
        additional_special_tokens=None,
    )
