"""Prompts to embeddings: one pass through both text encoders for many prompts, and an LRU.

Data flow: prompts -> those not cached, each once -> CLIP pooled state and T5 states -> one
`PromptVectors` per prompt. Runs on the device thread alone (fast tokenizers and models are not
safe to share). Must not log prompts: they belong to the user, which is why this does not call
`FluxPipeline.encode_prompt`, whose warning about truncation prints them.
"""

import dataclasses
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import FluxPipeline

from serve_app.engine.parts import PASS_PROMPTS_MAX


@dataclass(frozen=True, eq=False)
class PromptVectors:
    """One encoded prompt, on the device."""

    prompt: str
    pooled: torch.Tensor = field(repr=False)
    """CLIP state at the end token, [1, pooled_projection_dim]."""
    states: torch.Tensor = field(repr=False)
    """T5 states, [1, text_tokens_max, joint_attention_dim], padding included, as FLUX wants."""
    encode_s: float = 0.0
    """Seconds of the encoder pass that they came from; 0.0 when they came from the cache."""


class PromptEncoder:
    """Both text encoders of a pipeline, with the most recently used embeddings kept."""

    def __init__(self, pipeline: FluxPipeline, text_tokens_max: int, cache_entries: int) -> None:
        self._pipeline = pipeline
        self._text_tokens_max = text_tokens_max
        self._cache_entries = cache_entries
        self._cache: OrderedDict[str, PromptVectors] = OrderedDict()
        self._lock = threading.Lock()  # of the cache: `cached` may be called from any thread
        self.passes_done = 0

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> list[PromptVectors]:
        """Return the embeddings of `prompts`, in their order; equal prompts share one.

        A prompt encoded alone is bitwise what `FluxPipeline.encode_prompt` gives; among others it
        may differ in the last bits (another matrix shape, another order of summation).
        """
        wanted = list(dict.fromkeys(prompts))
        found = self._lookup(wanted)
        missing = [prompt for prompt in wanted if prompt not in found]
        for start in range(0, len(missing), PASS_PROMPTS_MAX):
            for vectors in self._encode_pass(missing[start : start + PASS_PROMPTS_MAX]):
                found[vectors.prompt] = vectors
                self._remember(vectors)
        return [found[prompt] for prompt in prompts]

    def cached(self, prompt: str) -> PromptVectors | None:
        """Look one prompt up. From any thread."""
        return self._lookup([prompt]).get(prompt)

    def __len__(self) -> int:
        return len(self._cache)

    def _lookup(self, prompts: Iterable[str]) -> dict[str, PromptVectors]:
        with self._lock:
            for prompt in prompts:
                if prompt in self._cache:
                    self._cache.move_to_end(prompt)
            return {prompt: self._cache[prompt] for prompt in prompts if prompt in self._cache}

    def _remember(self, vectors: PromptVectors) -> None:
        with self._lock:
            self._cache[vectors.prompt] = dataclasses.replace(vectors, encode_s=0.0)
            self._cache.move_to_end(vectors.prompt)
            while len(self._cache) > self._cache_entries:
                self._cache.popitem(last=False)

    def _encode_pass(self, prompts: list[str]) -> list[PromptVectors]:
        """As `FluxPipeline._get_clip_prompt_embeds` and `_get_t5_prompt_embeds` (0.42)."""
        started_at = time.monotonic()
        pipeline = self._pipeline
        clip_ids = _tokenize(pipeline.tokenizer, prompts, pipeline.tokenizer_max_length)
        t5_ids = _tokenize(pipeline.tokenizer_2, prompts, self._text_tokens_max)
        clip, t5 = pipeline.text_encoder, pipeline.text_encoder_2
        pooled = clip(clip_ids.to(clip.device), output_hidden_states=False).pooler_output
        states = t5(t5_ids.to(t5.device), output_hidden_states=False)[0]
        pooled = pooled.to(dtype=clip.dtype)
        states = states.to(dtype=t5.dtype)
        self.passes_done += 1
        # Slices are copied: a view would keep the whole pass alive as long as one of its prompts.
        copy = len(prompts) > 1
        encode_s = time.monotonic() - started_at
        return [
            PromptVectors(
                prompt,
                pooled=pooled[row : row + 1].clone() if copy else pooled,
                states=states[row : row + 1].clone() if copy else states,
                encode_s=encode_s,
            )
            for row, prompt in enumerate(prompts)
        ]


def _tokenize(tokenizer: Any, prompts: list[str], length: int) -> torch.Tensor:
    """Token ids [len(prompts), length], cut or padded to `length`."""
    ids: torch.Tensor = tokenizer(
        prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids
    return ids
