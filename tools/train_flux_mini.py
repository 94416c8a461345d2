"""Train flux-mini from scratch. Scratch files go to data/flux-mini-train.

python tools/train_flux_mini.py text --minutes 8        # text encoders, on captions alone; first
python tools/train_flux_mini.py denoiser --minutes 90   # transformer
python tools/train_flux_mini.py decoder --minutes 22    # VAE decoder: draws latents
python tools/train_flux_mini.py encoder --minutes 10    # VAE encoder: reads pictures back
python tools/train_flux_mini.py export                  # writes serve_app/models/flux-mini
python tools/train_flux_mini.py report                  # writes docs/flux-mini.md

Denoiser, decoder and encoder may run beside each other, be stopped at any time and be resumed.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

SCRATCH = ROOT / "data" / "flux-mini-train"
MODEL = ROOT / "serve_app" / "models" / "flux-mini"


def _denoiser(args: argparse.Namespace) -> None:
    from tools.flux_mini.denoiser import DenoiserPlan, Trainer, use_fast_cpu_attention

    if args.device == "cpu":
        use_fast_cpu_attention()
    plan = DenoiserPlan(
        folder=args.scratch, minutes=args.minutes, max_steps=args.max_steps, device=args.device
    )
    if args.rate is not None:
        plan.learning_rate = args.rate
    if args.decay_from is not None:
        plan.decay_from = args.decay_from
    trainer = Trainer(plan)
    trainer.run()
    trainer.check()


def _text(args: argparse.Namespace) -> None:
    from tools.flux_mini.text import TextPlan, train_text

    train_text(TextPlan(args.scratch, args.minutes, args.max_steps, args.device))


def _decoder(args: argparse.Namespace) -> None:
    from tools.flux_mini.decoder import DecoderPlan, DecoderTrainer

    plan = DecoderPlan(
        folder=args.scratch, minutes=args.minutes, max_steps=args.max_steps, device=args.device
    )
    if args.rate is not None:
        plan.learning_rate = args.rate
    DecoderTrainer(plan).run()


def _encoder(args: argparse.Namespace) -> None:
    from tools.flux_mini.encoder import EncoderPlan, EncoderTrainer

    plan = EncoderPlan(
        folder=args.scratch, minutes=args.minutes, max_steps=args.max_steps, device=args.device
    )
    EncoderTrainer(plan).run()


def _export(args: argparse.Namespace) -> None:
    from tools.flux_mini.folder import assemble

    print(f"{args.model}: {assemble(args.scratch, args.model)} bytes")


def _report(args: argparse.Namespace) -> None:
    from tools.flux_mini.report import write_report

    write_report(ROOT, args.scratch, args.model)


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and run one part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "part", choices=("text", "denoiser", "decoder", "encoder", "export", "report")
    )
    parser.add_argument(
        "--minutes", type=float, default=90.0, help="training time in all, earlier runs included"
    )
    parser.add_argument("--max-steps", type=int, default=None)
    parser.add_argument("--rate", type=float, default=None, help="peak learning rate")
    parser.add_argument(
        "--decay-from", type=float, default=None, help="share of the time before the rate falls"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--scratch", type=Path, default=SCRATCH)
    parser.add_argument("--model", type=Path, default=MODEL)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    parts = {
        "text": _text,
        "denoiser": _denoiser,
        "decoder": _decoder,
        "encoder": _encoder,
        "export": _export,
        "report": _report,
    }
    parts[args.part](args)


if __name__ == "__main__":
    main()
