from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from engine_kit import TEXT_TOKENS, make_job, quiet, reference

from serve_app.engine.job import GenerationJob
from serve_app.engine.load import load_pipeline, model_info
from serve_app.engine.sampler import NonFiniteLatents, Sample, Sampler
from serve_app.engine.text import PromptEncoder

CASES = [  # width, height, steps, seed
    (64, 64, 1, 0),
    (96, 64, 4, 1),
    (64, 128, 3, 2**63 + 5),
    (128, 128, 7, 42),
]


class Rig:
    """A pipeline for the reference, and another one cut into sampler and encoder."""

    def __init__(self, source: str) -> None:
        self.pipeline = quiet(load_pipeline(source, "cpu", "fp32"))
        ours = load_pipeline(source, "cpu", "fp32")
        self.tokens = model_info(ours, TEXT_TOKENS).text_tokens_max
        self.encoder = PromptEncoder(ours, self.tokens, 16)
        self.sampler = Sampler(ours, "cpu")

    def start(self, job: GenerationJob) -> Sample:
        [embedding] = self.encoder.encode([job.prompt])
        return self.sampler.start(
            embedding, job.width, job.height, job.steps, job.guidance, job.seeds[0]
        )

    def alone(self, job: GenerationJob) -> Sample:
        sample = self.start(job)
        while not sample.done:
            self.sampler.step([sample])
        return sample

    def reference(self, job: GenerationJob, output_type: str) -> object:
        return reference(self.pipeline, job, text_tokens=self.tokens, output_type=output_type)


@pytest.fixture(scope="module")
def rigs(schnell_folder: Path, dev_folder: Path) -> dict[str, Rig]:
    return {"schnell": Rig(str(schnell_folder)), "dev": Rig(str(dev_folder))}


@pytest.mark.parametrize(("width", "height", "steps", "seed"), CASES)
@pytest.mark.parametrize("shape", ["schnell", "dev"])
def test_a_sample_alone_is_bitwise_what_the_pipeline_makes(
    rigs: dict[str, Rig], shape: str, width: int, height: int, steps: int, seed: int
) -> None:
    job = make_job(width=width, height=height, steps=steps, seeds=(seed,), guidance=3.5)
    ours = rigs[shape].alone(job)
    assert torch.equal(ours.latents[0], rigs[shape].reference(job, "latent"))
    assert np.array_equal(
        rigs[shape].sampler.decode(ours), np.asarray(rigs[shape].reference(job, "pil"))
    )


@pytest.mark.parametrize(("size", "steps"), [((256, 256), 4), ((512, 256), 2), ((128, 128), 8)])
def test_flux_mini_alone_is_bitwise_what_the_pipeline_makes(
    size: tuple[int, int], steps: int
) -> None:
    rig = Rig("embedded:flux-mini")
    job = make_job(width=size[0], height=size[1], steps=steps, guidance=0.0)
    ours = rig.alone(job)
    assert torch.equal(ours.latents[0], rig.reference(job, "latent"))
    assert np.array_equal(rig.sampler.decode(ours), np.asarray(rig.reference(job, "pil")))


@pytest.mark.parametrize("shape", ["schnell", "dev"])
def test_samples_that_join_and_leave_in_mid_flight_are_as_alone(
    rigs: dict[str, Rig], shape: str
) -> None:
    rig = rigs[shape]
    jobs = [
        make_job(prompt=f"picture {n}", steps=steps, guidance=guidance, seeds=(n,))
        for n, (steps, guidance) in enumerate([(4, 3.5), (6, 1.0), (3, 7.0), (5, 2.0)])
    ]
    samples = [rig.start(job) for job in jobs]
    joins_at = [0, 1, 2, 4]
    turn = 0
    while not all(sample.done for sample in samples):
        batch = [
            sample
            for sample, joins in zip(samples, joins_at, strict=True)
            if joins <= turn and not sample.done
        ]
        rig.sampler.step(batch)
        turn += 1
    for job, sample in zip(jobs, samples, strict=True):
        expected = rig.reference(job, "latent")
        assert isinstance(expected, torch.Tensor)
        torch.testing.assert_close(sample.latents[0], expected, atol=1e-5, rtol=0)


def test_guidance_reaches_a_model_that_takes_it_and_no_other(rigs: dict[str, Rig]) -> None:
    weak, strong = make_job(guidance=1.0), make_job(guidance=5.0)
    dev, schnell = rigs["dev"], rigs["schnell"]
    assert not torch.equal(dev.alone(weak).latents, dev.alone(strong).latents)
    assert torch.equal(schnell.alone(weak).latents, schnell.alone(strong).latents)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_latents_that_are_no_numbers_never_become_a_picture(
    rigs: dict[str, Rig], bad: float
) -> None:
    sample = rigs["dev"].alone(make_job())
    sample.latents[0, 3, 3] = bad
    with pytest.raises(NonFiniteLatents):
        rigs["dev"].sampler.decode(sample)


def test_bf16_follows_the_pipeline_bitwise_too(dev_folder: Path) -> None:
    pipeline: FluxPipeline = quiet(load_pipeline(str(dev_folder), "cpu", "bf16"))
    job = make_job(steps=4)
    [embedding] = PromptEncoder(pipeline, TEXT_TOKENS, 0).encode([job.prompt])
    sampler = Sampler(pipeline, "cpu")
    sample = sampler.start(embedding, 64, 64, 4, job.guidance, job.seeds[0])
    for _ in range(4):
        sampler.step([sample])
    assert sample.latents.dtype == torch.bfloat16
    assert torch.equal(sample.latents[0], reference(pipeline, job, output_type="latent"))
    assert np.array_equal(sampler.decode(sample), np.asarray(reference(pipeline, job)))
