"""The pipeline folder on disk: written in fp16 safetensors, read with
`FluxPipeline.from_pretrained`.
"""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextModel, T5EncoderModel

from tools.flux_mini.decoder_init import init_decoder
from tools.flux_mini.model import build_scheduler, build_vae
from tools.flux_mini.network import FluxMini
from tools.flux_mini.words import build_tokenizer

LIMIT_BYTES = 12 * 1000 * 1000


def save_folder(
    folder: Path,
    vae: AutoencoderKL,
    transformer: FluxTransformer2DModel,
    clip: CLIPTextModel,
    t5: T5EncoderModel,
) -> int:
    """Write the pipeline and return its size in bytes. Stored in fp16 for size; meant to run in
    fp32 or bf16.
    """
    pipe = FluxPipeline(
        scheduler=build_scheduler(),
        vae=vae,
        text_encoder=clip,
        tokenizer=build_tokenizer(with_start=True),
        text_encoder_2=t5,
        tokenizer_2=build_tokenizer(with_start=False),
        transformer=transformer,
    )
    parts = (vae, transformer, clip, t5)
    for part in parts:
        part.half()
    pipe.save_pretrained(folder, safe_serialization=True)
    for part in parts:
        part.float()
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes them for the owner alone
    _name_tokenizers_portably(folder)
    return folder_bytes(folder)


def _name_tokenizers_portably(folder: Path) -> None:
    """Transformers 5 writes its internal class name; the public name loads in 4 and 5 alike."""
    name = "PreTrainedTokenizerFast"
    index_file = folder / "model_index.json"
    index = json.loads(index_file.read_text())
    for slot in ("tokenizer", "tokenizer_2"):
        index[slot] = ["transformers", name]
        config_file = folder / slot / "tokenizer_config.json"
        config = json.loads(config_file.read_text())
        config["tokenizer_class"] = name
        config_file.write_text(json.dumps(config, indent=2) + "\n")
    index_file.write_text(json.dumps(index, indent=2) + "\n")


def folder_bytes(folder: Path) -> int:
    """Bytes of all files under `folder`."""
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def load_folder(folder: Path, device: str = "cpu") -> FluxPipeline:
    """Load for inference in fp32, quietly."""
    pipe = FluxPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def assemble(scratch: Path, folder: Path) -> int:
    """Write `folder` from the checkpoints in `scratch`; a part that was not trained yet keeps its
    first weights.
    """
    vae = build_vae()
    init_decoder(vae)
    for part, module in (("decoder", vae.decoder), ("encoder", vae.encoder)):
        file = scratch / f"{part}.pt"
        if file.exists():
            module.load_state_dict(torch.load(file, map_location="cpu", weights_only=True)[part])
    net = FluxMini()
    file = scratch / "denoiser.pt"
    if file.exists():
        net.load_state_dict(torch.load(file, map_location="cpu", weights_only=True)["average"])
    size = save_folder(folder, vae, net.transformer, net.clip, net.t5)
    if size > LIMIT_BYTES:
        raise ValueError(f"{folder} has {size} bytes, more than {LIMIT_BYTES}")
    return size
