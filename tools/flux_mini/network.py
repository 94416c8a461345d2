"""The trained whole: transformer and both text encoders, with probes that teach early blocks where
a token is.
"""

from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from torch.nn import functional

from tools.flux_mini.data import Batch
from tools.flux_mini.latents import pack, unpack
from tools.flux_mini.model import TEXT_WIDTH, WIDTH, build_clip, build_t5, build_transformer
from tools.flux_mini.world import COLOURS, LAYOUT_NUMBERS, RELATIONS, SHAPES, SIZES, Spec


def image_ids(h: int, w: int, device: torch.device) -> Tensor:
    """FluxPipeline's image ids for latents [h, w]: [h*w/4, 3] of (0, row, column)."""
    ids = torch.zeros(h // 2, w // 2, 3, device=device)
    ids[..., 1] += torch.arange(h // 2, device=device)[:, None]
    ids[..., 2] += torch.arange(w // 2, device=device)[None, :]
    return ids.view(-1, 3)


class FluxMini(nn.Module):
    """Transformer, CLIP and T5 as FluxPipeline wires them."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer: FluxTransformer2DModel = build_transformer()
        self.clip = build_clip()
        self.t5 = build_t5()

    def encode_text(self, clip_ids: Tensor, t5_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled CLIP output [B, 64] and T5 states [B, T, 64]."""
        return self.clip(clip_ids).pooler_output, self.t5(t5_ids)[0]

    def velocity(self, noisy: Tensor, time: Tensor, pooled: Tensor, words: Tensor) -> Tensor:
        """Predicted noise - clean, [B, C, h, w]."""
        h, w = noisy.shape[2:]
        out = self.transformer(
            hidden_states=pack(noisy),
            encoder_hidden_states=words,
            pooled_projections=pooled,
            timestep=time,
            img_ids=image_ids(h, w, noisy.device),
            txt_ids=torch.zeros(words.shape[1], 3, device=noisy.device),
            return_dict=False,
        )[0]
        return unpack(out.float(), h, w)

    @torch.no_grad()
    def sample(self, clip_ids: Tensor, t5_ids: Tensor, noise: Tensor, steps: int) -> Tensor:
        """Euler steps from `noise` to clean latents, as the pipeline does."""
        pooled, words = self.encode_text(clip_ids, t5_ids)
        latents = noise
        for k in range(steps, 0, -1):
            time = torch.full((len(noise),), k / steps, device=noise.device)
            latents = latents - self.velocity(latents, time, pooled, words) / steps
        return latents


class Probes(nn.Module):
    """Linear read-outs of the first three blocks, used only in training.

    FLUX knows position only through rotary phases against the text tokens, and the image's extent
    only through what attention finds. Each stage of that reasoning gets a direct signal: block 1
    must know a token's absolute place, block 2 its place relative to the image's extent, block 3
    the layout numbers hidden in the noise.
    """

    def __init__(self, net: FluxMini) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(WIDTH, n) for n in (2, 4, LAYOUT_NUMBERS + 2))
        self._seen: list[Tensor] = []
        blocks = [*net.transformer.transformer_blocks, *net.transformer.single_transformer_blocks][
            :3
        ]
        for block in blocks:
            block.register_forward_hook(self._remember)

    def _remember(self, _module: nn.Module, _args: Any, output: tuple[Tensor, Tensor]) -> None:
        if self.training and torch.is_grad_enabled():
            self._seen.append(output[1])  # (text states, image states)

    def loss(self, batch: Batch) -> Tensor:
        """Mean squared error of the read-outs; forgets the states."""
        states, self._seen = self._seen, []
        rows, columns = batch.noise.shape[2] // 2, batch.noise.shape[3] // 2
        place = image_ids(2 * rows, 2 * columns, batch.noise.device)[:, 1:]
        extent = torch.tensor([rows, columns], device=place.device, dtype=place.dtype)
        relative = 2.0 * (place + 0.5) / extent - 1.0
        logs = (torch.log2(extent) - 2.5).expand(len(place), 2)
        uv = functional.avg_pool2d(batch.clean[:, :2], 2).flatten(2).transpose(1, 2)
        numbers = (2.0 * batch.uniform - 1.0)[:, None, :].expand(-1, len(place), -1)
        targets = (
            (place / 8.0).expand(len(uv), -1, -1),
            torch.cat([relative, logs], dim=1).expand(len(uv), -1, -1),
            torch.cat([numbers, uv], dim=2),
        )
        total = torch.zeros((), device=place.device)
        for head, state, target in zip(self.heads, states, targets, strict=True):
            read = head(functional.layer_norm(state.float(), (WIDTH,)))
            total = total + functional.mse_loss(read, target)
        return total


class Readers(nn.Module):
    """Linear read-outs of both text encoders' outputs, used only in training.

    They ask for what the caption means: background, count, size, the relation, the object named
    first, and which object stands first and which second in the picture (left to right, top to
    bottom). "A left of B" and "B right of A" must read alike; without this the relations take far
    longer to be understood.
    """

    # ground; colour, shape of the first and the second place, of the first name; relation; n; size
    _object = (len(COLOURS), len(SHAPES))
    sizes = (len(COLOURS), *_object, *_object, *_object, 1 + len(RELATIONS), 4, len(SIZES))

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(TEXT_WIDTH, sum(self.sizes)) for _ in range(2))

    def loss(self, pooled: Tensor, words: Tensor, specs: list[Spec]) -> Tensor:
        """Mean cross entropy over questions and encoders."""
        answers = torch.tensor([_meaning(spec) for spec in specs], device=pooled.device)
        total = torch.zeros((), device=pooled.device)
        for head, state in zip(self.heads, (pooled, words.mean(dim=1)), strict=True):
            logits = head(functional.layer_norm(state.float(), (TEXT_WIDTH,)))
            for question, part in enumerate(logits.split(self.sizes, dim=1)):
                total = total + functional.cross_entropy(part, answers[:, question])
        return total / (2 * len(self.sizes))


def _meaning(spec: Spec) -> list[int]:
    """Class numbers in the order of `Readers.sizes`."""
    named, second = spec.objects[0], spec.objects[-1]
    first = named
    if spec.relation in ("right of", "below"):
        first, second = second, first
    objects = [f(o[k]) for o in (first, second, named) for k, f in _COLOUR_THEN_SHAPE]
    relation = 0 if spec.relation is None else 1 + RELATIONS.index(spec.relation)
    rest = [relation, len(spec.objects) - 1, SIZES.index(spec.size)]
    return [COLOURS.index(spec.background), *objects, *rest]


_COLOUR_THEN_SHAPE = ((1, COLOURS.index), (0, SHAPES.index))


_stock_attention = functional.scaled_dot_product_attention


def plain_attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Softmax attention spelled out: on CPU in bf16 its backward is far faster than the kernel's.

    Only for attention without a mask, the transformer's; the text encoders' masks and position
    biases go to the stock function.
    """
    if args or kwargs.get("attn_mask") is not None or kwargs.get("is_causal"):
        return _stock_attention(query, key, value, *args, **kwargs)
    weights = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    mixed: Tensor = weights.softmax(dim=-1) @ value
    return mixed
