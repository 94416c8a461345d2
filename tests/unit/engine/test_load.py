import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from serve_app.engine import load, source
from serve_app.engine.job import ModelInfo
from serve_app.engine.load import load_pipeline
from serve_app.engine.random_weights import build_random_flux
from serve_app.errors import ConfigError

COMPONENTS = {
    "scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "transformer", "vae",
}  # fmt: skip


def test_a_random_model_has_the_files_and_classes_of_flux_1(schnell_folder: Path) -> None:
    assert {path.name for path in schnell_folder.iterdir()} == COMPONENTS | {"model_index.json"}
    index = json.loads((schnell_folder / "model_index.json").read_text())
    assert index["_class_name"] == "FluxPipeline"
    classes = {name: index[name][1] for name in COMPONENTS}
    assert classes == {
        "scheduler": "FlowMatchEulerDiscreteScheduler",
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "T5EncoderModel",
        "tokenizer": "CLIPTokenizer",
        "tokenizer_2": "T5Tokenizer",
        "transformer": "FluxTransformer2DModel",
        "vae": "AutoencoderKL",
    }
    assert not list(schnell_folder.rglob("*.bin"))


def test_random_weights_depend_on_the_seed_alone(tmp_path: Path, schnell_folder: Path) -> None:
    name = "transformer/diffusion_pytorch_model.safetensors"
    same = load_file(build_random_flux(tmp_path / "same") / name)
    other = load_file(build_random_flux(tmp_path / "other", seed=1) / name)
    first = load_file(schnell_folder / name)
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_weights_stored_in_fp16_run_in_the_precision_asked_for(
    tmp_path: Path, schnell_folder: Path, precision: load.Precision, dtype: torch.dtype
) -> None:
    folder = tmp_path / "half"
    shutil.copytree(schnell_folder, folder)
    for path in folder.rglob("*.safetensors"):
        halved = {key: value.half() for key, value in load_file(path).items()}
        save_file(halved, path, {"format": "pt"})
    pipeline = load_pipeline(str(folder), "cpu", precision)
    modules = (pipeline.transformer, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2)
    assert {module.dtype for module in modules} == {dtype}
    assert not any(module.training for module in modules)


@pytest.mark.parametrize(
    "missing", ["no/such/folder", "./missing", "missing", "/", "embedded:flux-maxi", "random:sd"]
)
def test_a_source_that_is_not_there_is_named(missing: str) -> None:
    with pytest.raises(ConfigError, match=missing):
        load_pipeline(missing, "cpu", "fp32")
    with pytest.raises(ConfigError, match=missing):
        source.model_info(missing)


def test_a_folder_without_weights_is_named(tmp_path: Path, schnell_folder: Path) -> None:
    folder = tmp_path / "hollow"
    shutil.copytree(schnell_folder, folder)
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    with pytest.raises(ConfigError, match="hollow"):
        load_pipeline(str(folder), "cpu", "fp32")


@pytest.mark.parametrize("device", ["abacus", "cuda:99"])
def test_a_device_that_is_not_there_is_named(schnell_folder: Path, device: str) -> None:
    if torch.cuda.device_count() > 99:
        pytest.skip("that many GPUs")
    with pytest.raises(ConfigError, match=device):
        load_pipeline(str(schnell_folder), device, "fp32")


@pytest.mark.parametrize("name", ["schnell", "dev", "flux-mini"])
@pytest.mark.parametrize("cap", [None, 16, 10_000])
def test_the_files_say_what_the_loaded_model_says(
    name: str, cap: int | None, schnell_folder: Path, dev_folder: Path
) -> None:
    found = {
        "schnell": str(schnell_folder),
        "dev": str(dev_folder),
        "flux-mini": "embedded:flux-mini",
    }[name]
    assert source.model_info(found, cap) == load.model_info(
        load_pipeline(found, "cpu", "fp32"), cap
    )


def test_a_model_says_its_size_multiple_text_length_and_guidance(
    schnell_folder: Path, dev_folder: Path
) -> None:
    assert source.model_info(str(schnell_folder)) == ModelInfo(16, 256, guidance=False)
    assert source.model_info(str(dev_folder)) == ModelInfo(16, 512, guidance=True)
    assert source.model_info(str(dev_folder), 77) == ModelInfo(16, 77, guidance=True)
    assert source.model_info("random:dev") == ModelInfo(16, 512, guidance=True)
    assert source.model_info("random:schnell") == ModelInfo(16, 256, guidance=False)


def test_a_tokenizer_without_a_limit_is_held_to_that_of_diffusers() -> None:
    assert source.text_tokens(10**30, guidance=True, cap=None) == 512


def test_a_random_source_needs_no_files() -> None:
    pipeline = load_pipeline("random:tiny-dev", "cpu", "bf16")
    assert pipeline.transformer.config.guidance_embeds
    assert pipeline.transformer.dtype == torch.bfloat16


def test_reading_about_a_model_does_not_load_torch() -> None:
    script = (
        "import sys; from serve_app.engine.source import model_info;"
        "print(model_info('random:dev').size_multiple_px);"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "16"


def test_a_container_quota_bounds_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = tmp_path / "cpu.max"
    monkeypatch.setattr(load, "_CGROUP_CPU_MAX", limits)
    everything = load.available_cores()
    limits.write_text("50000 100000\n")
    assert load.available_cores() == 1
    limits.write_text("max 100000\n")
    assert load.available_cores() == everything
