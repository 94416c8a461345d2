"""One sample at a time through FLUX: noise, steps, pixels, exactly as `FluxPipeline` does it.

Data flow: seed -> noise (`start`) -> step batches of samples of equal size (`step`) -> finite
latents -> VAE -> uint8 pixels on the host (`decode`). `start` and `step` belong to the device
thread; `decode` may run beside them, on a thread and a stream of its own (`lane.py`). Every sample
owns a diffusers scheduler object and steps its own slice: at batch 1 the result is bitwise that
of `FluxPipeline.__call__`, which one broadcast Euler step over the batch is not (in bf16, 0-d
sigmas do not promote, [B, 1, 1] ones do). Must not know about jobs, queues or asyncio.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps

from serve_app.engine.graphs import Inputs, Recorder, StepGraphs
from serve_app.engine.optimize import Compiled
from serve_app.engine.parts import NonFiniteLatents
from serve_app.engine.text import PromptVectors

TRAIN_TIMESTEPS = 1000  # FluxPipeline hands the transformer timestep / 1000

Pixels = npt.NDArray[np.uint8]
"""[height, width, 3], RGB, on the host."""


@dataclass(eq=False)
class Sample:
    """One image in the making."""

    vectors: PromptVectors
    width: int
    height: int
    steps: int
    guidance: float
    latents: torch.Tensor
    """[1, tokens, channels], packed 2x2."""
    image_ids: torch.Tensor
    """[tokens, 3]: positions of the tokens, the same for every sample of this size."""
    scheduler: Any
    """Own copy: it counts this sample's steps."""
    timesteps: torch.Tensor
    steps_done: int = 0
    preview_steps: tuple[int, ...] = ()
    """After which steps to keep the latents of a preview."""
    preview: torch.Tensor | None = None
    """Predicted clean latents of the step just done, if it is one of those."""

    @property
    def done(self) -> bool:
        return self.steps_done >= self.steps


class Sampler:
    """The denoising half of a pipeline, cut open between steps."""

    def __init__(
        self,
        pipeline: FluxPipeline,
        device: str,
        compiled: Compiled | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        """Draw with a pipeline on its device.

        Args:
            pipeline: FLUX.
            device: of torch.
            compiled: what has been compiled of it.
            recorder: records CUDA graphs; with it step batches can be captured.
        """
        self._pipeline = pipeline
        self.graphs = StepGraphs(self._transform, recorder) if recorder else None
        self._compiled = compiled or Compiled()
        self._device = torch.device(device)
        self._guidance = bool(pipeline.transformer.config.guidance_embeds)

    @torch.no_grad()
    def start(
        self,
        vectors: PromptVectors,
        width: int,
        height: int,
        steps: int,
        guidance: float,
        seed: int,
    ) -> Sample:
        """Draw the noise of `seed` on the CPU, so that a seed means the same on every device."""
        pipeline = self._pipeline
        latents, image_ids = pipeline.prepare_latents(
            1,
            pipeline.transformer.config.in_channels // 4,
            height,
            width,
            vectors.states.dtype,
            self._device,
            torch.Generator("cpu").manual_seed(seed),
        )
        scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
        timesteps = self._set_timesteps(scheduler, steps, latents.shape[1])
        return Sample(
            vectors,
            width,
            height,
            len(timesteps),
            guidance,
            latents,
            image_ids,
            scheduler,
            timesteps,
        )

    @torch.no_grad()
    def step(self, samples: Sequence[Sample]) -> None:
        """Advance every sample by one step, in one transformer call; sizes must be equal."""
        velocities = self._velocities(samples)
        for row, sample in enumerate(samples):
            timestep = sample.timesteps[sample.steps_done]
            velocity = velocities[row : row + 1]
            sample.preview = _clean_latents(sample, velocity)
            sample.latents = sample.scheduler.step(
                velocity, timestep, sample.latents, return_dict=False
            )[0]
            sample.steps_done += 1
        if self._device.type == "cuda":
            # A step is over when the GPU says so: its events, its time and the next choice of a
            # batch would otherwise run ahead of it. What is decoded beside it is not waited for.
            torch.cuda.current_stream(self._device).synchronize()

    @torch.no_grad()
    def decode(self, sample: Sample) -> Pixels:
        """Turn latents into pixels, one image at a time: a batched VAE is slower and hungrier.

        Raises:
            NonFiniteLatents: the latents or the decoded picture hold NaN or infinity.
        """
        return self.decode_latents(sample.latents, sample.height, sample.width)

    @torch.no_grad()
    def decode_latents(self, latents: torch.Tensor, height: int, width: int) -> Pixels:
        """Pixels of packed latents [1, tokens, channels], a preview's for one; raises as `decode`.

        On a GPU it works on the calling thread's stream, and waits for that alone.
        """
        pipeline = self._pipeline
        config = pipeline.vae.config
        if not bool(torch.isfinite(latents).all()):
            raise NonFiniteLatents
        latents = pipeline._unpack_latents(latents, height, width, pipeline.vae_scale_factor)
        latents = (latents / config.scaling_factor) + config.shift_factor
        with self._compiled.call(height, width, 0):
            image = pipeline.vae.decode(latents, return_dict=False)[0]
        if not bool(torch.isfinite(image).all()):
            raise NonFiniteLatents
        return _to_pixels(image)

    @torch.no_grad()
    def capture(self, samples: Sequence[Sample]) -> None:
        """Record the transformer call of such a step batch; `step` replays it from then on."""
        if self.graphs is not None:
            first = samples[0]
            self.graphs.capture((first.height, first.width), self._inputs(samples))

    def _velocities(self, samples: Sequence[Sample]) -> torch.Tensor:
        """Predict velocities [len(samples), tokens, channels]."""
        first, inputs = samples[0], self._inputs(samples)
        if self.graphs is not None:
            replayed = self.graphs.replay((first.height, first.width), inputs)
            if replayed is not None:
                return replayed
        with self._compiled.call(first.height, first.width, len(samples)):
            return self._transform(inputs)

    def _transform(self, inputs: Inputs) -> torch.Tensor:
        """Call the transformer."""
        transformer = self._pipeline.transformer
        with transformer.cache_context("cond"):
            velocities: torch.Tensor = transformer(
                **inputs, joint_attention_kwargs={}, return_dict=False
            )[0]
        return velocities

    def _inputs(self, samples: Sequence[Sample]) -> Inputs:
        latents = torch.cat([sample.latents for sample in samples])
        timestep = torch.stack([sample.timesteps[sample.steps_done] for sample in samples])
        states = torch.cat([sample.vectors.states for sample in samples])
        guidance = None
        if self._guidance:
            guidance = torch.tensor(
                [sample.guidance for sample in samples], device=self._device, dtype=torch.float32
            )
        return {
            "hidden_states": latents,
            # Rounded to the latents' precision first, as FluxPipeline does.
            "timestep": timestep.to(latents.dtype) / TRAIN_TIMESTEPS,
            "guidance": guidance,
            "pooled_projections": torch.cat([sample.vectors.pooled for sample in samples]),
            "encoder_hidden_states": states,
            "txt_ids": torch.zeros(states.shape[1], 3, device=self._device, dtype=states.dtype),
            "img_ids": samples[0].image_ids,
        }

    def _set_timesteps(self, scheduler: Any, steps: int, tokens: int) -> torch.Tensor:
        """Steps 5 and 6 of `FluxPipeline.__call__`: sigmas, resolution-dependent shift, index."""
        config = scheduler.config
        own_sigmas = config.get("use_flow_sigmas", False)
        sigmas = None if own_sigmas else np.linspace(1.0, 1 / steps, steps)
        shift = calculate_shift(
            tokens,
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
        )
        timesteps: torch.Tensor = retrieve_timesteps(
            scheduler, steps, self._device, sigmas=sigmas, mu=shift
        )[0]
        scheduler.set_begin_index(0)
        return timesteps


def _clean_latents(sample: Sample, velocity: torch.Tensor) -> torch.Tensor | None:
    """Where the step under way thinks this sample ends; None when nobody wants a preview of it.

    A new tensor: the sample's own latents, and so its image, do not change.
    """
    if sample.steps_done + 1 not in sample.preview_steps:
        return None
    sigma = float(sample.scheduler.sigmas[sample.steps_done])
    return sample.latents - sigma * velocity


def _to_pixels(image: torch.Tensor) -> Pixels:
    """[1, 3, height, width] in -1..1 -> [height, width, 3] in 0..255, rounded on the device.

    As `VaeImageProcessor.postprocess(output_type="pil")`; only bytes cross to the host.
    """
    image = (image * 0.5 + 0.5).clamp(0, 1)
    image = (image[0].permute(1, 2, 0).float() * 255).round().to(torch.uint8)
    image = image.contiguous()
    if image.is_cuda:  # a pinned target is copied to by DMA, at the full speed of the bus
        host = torch.empty(image.shape, dtype=image.dtype, pin_memory=True)
        host.copy_(image, non_blocking=True)
        # Waiting for it sleeps: to spin would cost a core.
        copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        copied.record(torch.cuda.current_stream(image.device))
        copied.synchronize()
        image = host
    pixels: Pixels = image.numpy()
    return pixels
