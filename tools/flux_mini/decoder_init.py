"""The decoder's first weights, and the optimizer of its convolutions."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

# Places in the decoder's residual stream: object colour, background colour, distance to the edge
# (nothing at first), scale, two anchors, u, v, rho, shape word. The last level is narrower: it
# keeps the first ten, with a balance in the place of scale.
_STREAM: tuple[int | None, ...] = (
    8, 9, 10, 11, 12, 13, None, 3, None, None, 0, 1, 2, 4, 5, 6, 7,
)  # fmt: skip
_COLOURS = range(6)
EDGE_CHANNEL = 6
_BALANCE = 7
_ANCHORS = (8, 9)
_ANCHOR_SIZE = 1.5  # times sqrt(channels): anchors then make up most of a norm's variance
_LAST_ANCHOR_SIZE = 8.0  # at full resolution, where colours must not depend on the picture at all

_HALF_WIDTH = 0.0415  # of an edge: half a pixel, as silu(2 tanh(0.5 / 12)) tells it
_EDGE_GAIN = 80.0
_PUSH = 3.8  # takes the colour that is not shown below zero
_LIFT = 1.9  # takes the colour that is shown above zero
_COLOUR_GAIN = 6.0
_RGB_SCALE = 1.4  # of colours in the latent


@torch.no_grad()
def init_decoder(vae: AutoencoderKL) -> None:
    """Carry the latents up, blend the two colours at the edge; the edge itself is left to learn.

    Nearest up-sampling and a [1 2 1] kernel is exact linear interpolation: so offsets go up, while
    colours, constant around an object, are copied. A norm over the whole picture would scale a
    pixel's colour by what else the picture shows; two constant channels of opposite sign
    ("anchors") dominate its variance, so that it is nearly a fixed scale.
    """
    decoder = vae.decoder
    _randomise(decoder)
    for name, module in decoder.named_modules():
        if not isinstance(module, nn.Conv2d) or name == "conv_in":
            continue
        module.weight[:, list(_ANCHORS)] *= 0.1  # else their size would swamp the random start
        if name.endswith("conv1"):
            _anchor(module)
        elif name.endswith("conv2"):
            module.weight.mul_(0.1)
        elif name.endswith("conv_shortcut") or ".upsamplers." in name:
            _copy(module.weight)
    decoder.conv_in.weight[: len(_STREAM)] = 0.0
    for place, channel in enumerate(_STREAM):
        if channel is not None:
            decoder.conv_in.weight[place, channel, 1, 1] = 1.0
    init_drawing(decoder)


@torch.no_grad()
def init_drawing(decoder: Any) -> None:
    """Set what draws: colours and anchors on their way up, and the last two levels whole."""
    pin_colours(decoder)
    for block in list(decoder.up_blocks)[4:]:
        for resnet in block.resnets:
            nn.init.zeros_(resnet.conv2.weight)
            nn.init.zeros_(resnet.conv2.bias)
    _init_balance(decoder.up_blocks[5].resnets[0].conv_shortcut)
    _init_blend(decoder.up_blocks[5].resnets[1])
    _init_output(decoder.conv_norm_out, decoder.conv_out)


@torch.no_grad()
def pin_colours(decoder: nn.Module) -> None:
    """Keep colours and anchors apart from the rest of the stream, at all but the last level.

    The edge does not depend on colour, and colours go up unchanged; while only the edge is trained
    this has to be restored after every step.
    """
    colours = list(_COLOURS)
    for name, module in decoder.named_modules():
        if not isinstance(module, nn.Conv2d) or name.startswith(("conv_out", "up_blocks.5")):
            continue
        weight, bias = module.weight, module.bias
        assert bias is not None
        if name.endswith("conv1"):
            weight[:, colours] = 0.0
        elif name.endswith("conv2"):
            weight[[*_COLOURS, *_ANCHORS]] = 0.0
            bias[[*_COLOURS, *_ANCHORS]] = 0.0
        else:
            sources = [s for s in _STREAM[: len(colours)] if s is not None]
            sources = sources if name == "conv_in" else colours
            weight[:, sources] = 0.0
            weight[colours] = 0.0
            middle = weight.shape[2] // 2
            weight[colours, sources, middle, middle] = 1.0
            bias[colours] = 0.0
            _anchor(module)


def _init_balance(shortcut: Any) -> None:
    """Keep colours and edge, drop the rest, and add a channel that makes the channels' sum zero."""
    shortcut.weight.zero_()
    for c in (*_COLOURS, EDGE_CHANNEL):
        shortcut.weight[c, c] = 1.0
        shortcut.weight[_BALANCE, c] = -1.0
    _anchor(shortcut, _LAST_ANCHOR_SIZE)


def _init_blend(resnet: Any) -> None:
    """Push the object's colour down outside the edge, and the background's inside.

    Each is pushed a little late, so that at the edge itself both show by half: else thin dark
    lines would run along edges.
    """
    scale = math.sqrt(2.0) * _LAST_ANCHOR_SIZE
    for norm in (resnet.norm1, resnet.norm2):
        nn.init.constant_(norm.weight, scale)
    conv1, conv2 = resnet.conv1, resnet.conv2
    late = 0.35 * _HALF_WIDTH
    biases = (_HALF_WIDTH - late, -_HALF_WIDTH - late, _HALF_WIDTH + late, -_HALF_WIDTH + late)
    conv1.weight *= 0.1
    conv1.weight[:5] = 0.0
    conv1.weight[:4, EDGE_CHANNEL, 1, 1] = 1.0
    conv1.weight[4, EDGE_CHANNEL, 1, 1] = -4.0  # keeps the hidden channels' sum at zero
    conv1.bias[:4] = torch.tensor(biases)
    _anchor(conv1, _LAST_ANCHOR_SIZE)
    resnet.norm2.weight[:4] = scale * _EDGE_GAIN
    outside = _PUSH / (2.0 * _HALF_WIDTH * _EDGE_GAIN)  # hidden 0 - 1 and 2 - 3: 0 inside, 1 out
    conv2.weight[:3, 0, 1, 1] = -outside
    conv2.weight[:3, 1, 1, 1] = outside
    conv2.weight[3:6, 2, 1, 1] = outside
    conv2.weight[3:6, 3, 1, 1] = -outside
    conv2.bias[3:6] = -_PUSH
    conv2.bias[_BALANCE] = 3.0 * _PUSH


def _init_output(norm: Any, conv: Any) -> None:
    """Add what is left of both colours above zero."""
    nn.init.constant_(norm.weight, math.sqrt(2.0) * _LAST_ANCHOR_SIZE)
    norm.weight[:6] *= _COLOUR_GAIN
    norm.bias[:6] = _COLOUR_GAIN * _LIFT
    conv.weight *= 0.02
    conv.weight[:, :6] = 0.0
    for c in range(3):
        conv.weight[c, c, 1, 1] = conv.weight[c, c + 3, 1, 1] = 1.0 / (_COLOUR_GAIN * _RGB_SCALE)
        conv.weight[c, list(_ANCHORS)] = 0.0
        conv.bias[c] = -_LIFT / _RGB_SCALE


def _randomise(decoder: nn.Module) -> None:
    for module in decoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=math.sqrt(1.0 / module.weight[0].numel()))
            assert module.bias is not None
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.GroupNorm):
            nn.init.constant_(module.weight, math.sqrt(2.0) * _ANCHOR_SIZE)


def _copy(weight: Tensor) -> None:
    """Copy channels (1x1) or interpolate them (3x3 after up-sampling); new ones start random."""
    keep = min(weight.shape[0], weight.shape[1], len(_STREAM))
    tent = torch.tensor([0.25, 0.5, 0.25])
    kernel = torch.ones(1, 1) if weight.shape[-1] == 1 else torch.outer(tent, tent)
    weight[:keep] = 0.0
    weight[keep:] *= 0.5
    for c in range(keep):
        weight[c, c] = kernel


def _anchor(conv: nn.Conv2d, size: float = _ANCHOR_SIZE) -> None:
    """Make a convolution put out the two constants, whatever comes in."""
    for channel, sign in zip(_ANCHORS, (1.0, -1.0), strict=True):
        conv.weight[channel] = 0.0
        assert conv.bias is not None
        conv.bias[channel] = sign * size * math.sqrt(conv.out_channels)


class ConvMuon(torch.optim.Optimizer):
    """Muon for convolutions: the momentum, as a matrix [out, in*kh*kw], is orthogonalised before it
    is applied.

    torch.optim.Muon takes matrices only. Steps are scaled to the usual size of AdamW's.
    """

    def __init__(self, parameters: Iterable[Tensor], rate: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": rate, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Apply one update to every parameter with a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                buffer = self.state[p].setdefault("buffer", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                nesterov = p.grad.lerp(buffer, group["momentum"])
                update = orthogonal(nesterov.flatten(1))
                scale = 0.2 * math.sqrt(max(update.shape))
                p.add_(update.view_as(p), alpha=-group["lr"] * scale)


def orthogonal(matrix: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrix, by five Newton-Schulz steps (rough, as Muon needs no
    more).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x: Tensor = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x
