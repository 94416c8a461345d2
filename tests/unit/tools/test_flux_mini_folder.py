"""flux-mini on disk: stock parts, small, safetensors only; training runs, stops and resumes."""

import json
from pathlib import Path

import pytest
import torch

from tools.flux_mini.decoder import DecoderPlan, DecoderTrainer
from tools.flux_mini.denoiser import DenoiserPlan, Trainer
from tools.flux_mini.encoder import EncoderPlan, EncoderTrainer
from tools.flux_mini.folder import LIMIT_BYTES, assemble, folder_bytes, load_folder
from tools.flux_mini.text import TextPlan, train_text
from tools.judge_flux_mini import picture

MODEL = Path(__file__).resolve().parents[3] / "serve_app" / "models" / "flux-mini"
# Training in bf16 makes torch warn that a norm is not fused; that is only about speed.
pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_shipped_folder_is_small_and_holds_no_pickles() -> None:
    assert 1_000_000 < folder_bytes(MODEL) <= LIMIT_BYTES
    suffixes = {f.suffix for f in MODEL.rglob("*") if f.is_file()}
    assert suffixes <= {".json", ".safetensors"}


def test_shipped_folder_names_stock_classes_only() -> None:
    index = json.loads((MODEL / "model_index.json").read_text())
    assert index["_class_name"] == "FluxPipeline"
    assert index["transformer"] == ["diffusers", "FluxTransformer2DModel"]
    assert index["vae"] == ["diffusers", "AutoencoderKL"]
    assert index["scheduler"] == ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    assert index["text_encoder"] == ["transformers", "CLIPTextModel"]
    assert index["text_encoder_2"] == ["transformers", "T5EncoderModel"]


def test_shipped_folder_draws_with_the_stock_pipeline_and_is_deterministic() -> None:
    pipe = load_folder(MODEL)
    assert pipe.tokenizer_2.model_max_length == 24
    assert 2 * pipe.vae_scale_factor == 64
    text = "Zorp blimp!! a red circle, please — on a blue background"
    first = picture(pipe, text, 128, 192, 2, seed=1)
    assert first.size == (128, 192)
    assert first.tobytes() == picture(pipe, text, 128, 192, 2, seed=1).tobytes()


def test_denoiser_trains_and_resumes_where_it_stopped(tmp_path: Path) -> None:
    train_text(TextPlan(folder=tmp_path, max_steps=1, batch=4))
    plan = DenoiserPlan(folder=tmp_path, max_steps=2)
    first = Trainer(plan)
    first.run()
    assert first.steps == 2
    assert first.samples > 0
    plan.max_steps = 3
    second = Trainer(plan)
    assert second.steps == 2
    for a, b in zip(first.net.parameters(), second.net.parameters(), strict=True):
        assert torch.equal(a, b)
    second.run()
    assert second.steps == 3
    text = torch.load(tmp_path / "text.pt", weights_only=True)["clip"]
    assert all(torch.equal(second.net.clip.state_dict()[name], text[name]) for name in text)
    assert any(
        not torch.equal(a, b)
        for a, b in zip(first.net.parameters(), second.net.parameters(), strict=True)
    )


def test_decoder_and_encoder_train_resume_and_are_assembled(tmp_path: Path) -> None:
    decoder = DecoderTrainer(DecoderPlan(folder=tmp_path, max_steps=1))
    decoder.run()
    assert DecoderTrainer(DecoderPlan(folder=tmp_path, max_steps=1)).steps == 1
    EncoderTrainer(EncoderPlan(folder=tmp_path, max_steps=1, pixels=1)).run()
    assert EncoderTrainer(EncoderPlan(folder=tmp_path, max_steps=1)).steps == 1
    size = assemble(tmp_path, tmp_path / "model")
    assert size <= LIMIT_BYTES
    saved = load_folder(tmp_path / "model").vae.decoder.conv_in.weight
    assert torch.allclose(saved, decoder.vae.decoder.conv_in.weight, atol=1e-3)
