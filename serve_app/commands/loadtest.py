"""`flux-serve loadtest`: put a load on a server, report, and judge it by the exit status.

Data flow: options -> `Plan` -> `loadtest.conductor` -> report files -> exit status. Keys come from
the environment or a file, never from the command line, which every user of a machine can read.
Must not import gevent or Locust: they patch the standard library of the process they are in.
"""

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from serve_app.errors import ConfigError

if TYPE_CHECKING:
    from serve_app.loadtest.conductor import Sending
    from serve_app.loadtest.plan import Plan
    from serve_app.loadtest.report import Judged

KEY_VARIABLE = "FLUX_SERVE_API_KEY"
ADMIN_KEY_VARIABLE = "FLUX_SERVE_ADMIN_KEY"
EXIT_SLO = 3
"""An objective was missed; the books are equal."""
EXIT_LEDGER = 4
"""The books are wrong, whatever the objectives."""
EXIT_DOUBT = 5
"""Cut-off requests may have been charged, so the books cannot be called equal."""
DEFAULT_PORT = 5557
"""Locust's own."""


TargetOption = Annotated[str, typer.Option(metavar="URL", help="Base URL of the server.")]
ProfileOption = Annotated[
    str, typer.Option(help="ramp, step, burst, soak, or a trace: a file *.csv.")
]
DurationOption = Annotated[
    str | None, typer.Option(metavar="TIME", help="Such as 90s or 5m. Default: 60s.")
]
PeakRpsOption = Annotated[
    float | None, typer.Option(help="Highest rate, in requests a second. Default: 1.")
]
SeedOption = Annotated[int, typer.Option(help="Same seed, same requests at the same times.")]
MixOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="YAML: what the requests ask for.")
]
TimeoutOption = Annotated[str, typer.Option(metavar="TIME", help="A request is given up after it.")]
SloOption = Annotated[str | None, typer.Option(metavar="LIST", help="Such as p95=2s,errors=0.1%.")]
GpuHourPriceOption = Annotated[
    float | None, typer.Option(min=0, help="Price of a GPU-hour, for the cost of an image.")
]
OutOption = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Default: data/loadtest/RUN.")
]
KeyFileOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help=f"API key; else from {KEY_VARIABLE}.")
]
AdminKeyFileOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help=f"Key with the scope admin, to watch replicas; else from {ADMIN_KEY_VARIABLE}, "
        "else the API key.",
    ),
]
WorkersOption = Annotated[
    int, typer.Option(min=0, help="Sending processes beside this one; 0: one in all.")
]
MasterOption = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="Listen there for --workers of other machines."),
]
WorkerOption = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="Be a worker of the master there.")
]


def loadtest(
    target: TargetOption,
    profile: ProfileOption = "ramp",
    duration: DurationOption = None,
    peak_rps: PeakRpsOption = None,
    seed: SeedOption = 1,
    mix: MixOption = None,
    timeout: TimeoutOption = "120s",
    slo: SloOption = None,
    gpu_hour_price: GpuHourPriceOption = None,
    out: OutOption = None,
    key_file: KeyFileOption = None,
    admin_key_file: AdminKeyFileOption = None,
    workers: WorkersOption = 0,
    master: MasterOption = None,
    worker: WorkerOption = None,
) -> None:
    """Send requests at scheduled times, watch replicas, check the books, write a report.

    Exit status: 0 all is well, 1 it could not be run, 2 bad usage, 3 an objective was missed,
    4 the account was not charged what was delivered, 5 cut-off requests leave that in doubt.
    """
    _require_extra()
    target = _base_url(target)
    key = _key(key_file, KEY_VARIABLE)
    if key is None:
        raise ConfigError(f"which API key? Set {KEY_VARIABLE} or give --key-file")
    if worker is not None:
        raise typer.Exit(_be_worker(worker, target, key))
    plan = _plan(target, profile, duration, peak_rps, seed, mix, timeout)
    judged, page = _run(
        plan,
        (key, _key(admin_key_file, ADMIN_KEY_VARIABLE) or key),
        _sending(workers, master),
        slo,
        gpu_hour_price,
        out or Path("data/loadtest") / plan.run_id,
    )
    _print(judged, page)
    raise typer.Exit(exit_status(judged))


def exit_status(judged: "Judged") -> int:
    """What the shell learns; books that are wrong outweigh everything."""
    from serve_app.loadtest.books import Standing

    standing = judged.run.books.standing
    if standing is Standing.WRONG:
        return EXIT_LEDGER
    if standing is Standing.DOUBTFUL:
        return EXIT_DOUBT
    return 0 if all(verdict.met for verdict in judged.verdicts) else EXIT_SLO


def _run(
    plan: "Plan",
    keys: tuple[str, str],
    sending: "Sending",
    slo: str | None,
    gpu_hour_price: float | None,
    folder: Path,
) -> tuple["Judged", Path]:
    from serve_app.loadtest.conductor import conduct
    from serve_app.loadtest.live import Display
    from serve_app.loadtest.report import Judged, write_report
    from serve_app.loadtest.slo import judge, parse_slos
    from serve_app.loadtest.target import Target

    objectives = parse_slos(slo) if slo is not None else ()
    target = Target(plan.target, *keys)
    try:
        if not target.sees_status():
            typer.echo("replicas are not watched: this key lacks the scope 'admin'", err=True)
        folder.mkdir(parents=True, exist_ok=True)
        with Display() as display:
            run = conduct(plan, target, keys[0], sending, folder / "sender.log", display.show)
    finally:
        target.close()
    judged = Judged(run, judge(objectives, run.figures.objectives()), gpu_hour_price)
    return judged, write_report(judged, folder)


def _print(judged: "Judged", page: Path) -> None:
    from serve_app.loadtest.report import measured, notes, rows

    for name, value in rows(judged):
        typer.echo(f"{name:<28} {value}")
    codes = ", ".join(f"{code} {count:,}" for code, count in judged.run.figures.codes.items())
    typer.echo(f"{'replies':<28} {codes}")
    for verdict in judged.verdicts:
        said = "met" if verdict.met else "MISSED"
        typer.echo(f"{verdict.objective.text:<28} {said}, {measured(verdict)}")
    books = judged.run.books
    typer.echo(f"{'ledger':<28} {books.standing.value}: {books.explain()}")
    for note in notes(judged):
        typer.echo(f"note: {note}")
    typer.echo(f"report: {page}")


def _plan(
    target: str,
    profile: str,
    duration: str | None,
    peak_rps: float | None,
    seed: int,
    mix: Path | None,
    timeout: str,
) -> "Plan":
    from serve_app.loadtest.mix import Mix
    from serve_app.loadtest.plan import Plan, read_trace, require_bounded
    from serve_app.loadtest.quantities import parse_duration

    duration_s = None if duration is None else parse_duration(duration, "--duration")
    trace = None
    if profile.endswith(".csv"):
        if peak_rps is not None or mix is not None:
            raise ConfigError("a trace has its own times and requests: no --peak-rps, no --mix")
        trace = read_trace(Path(profile), duration_s)
        duration_s, peak_rps = trace.arrivals[-1][0], 0.0
    else:
        duration_s, peak_rps = duration_s or 60.0, 1.0 if peak_rps is None else peak_rps
        if not 0 < peak_rps < float("inf"):
            raise ConfigError("--peak-rps: must be more than 0")
        require_bounded(profile, duration_s, peak_rps)
    plan = Plan(
        run_id=f"load-{secrets.token_hex(4)}",
        target=target,
        profile=profile,
        duration_s=duration_s,
        peak_rps=peak_rps,
        seed=seed,
        timeout_s=parse_duration(timeout, "--timeout"),
        mix=trace.mix if trace else Mix() if mix is None else Mix.read(mix),
        trace=trace.arrivals if trace else None,
    )
    if not plan.schedule():
        raise ConfigError("nothing would be sent: raise --peak-rps or --duration")
    return plan


def _base_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
        raise ConfigError(f"--target: {url!r} is no URL such as http://127.0.0.1:8000")
    return url.rstrip("/")


def _key(file: Path | None, variable: str) -> str | None:
    if file is None:
        return os.environ.get(variable) or None
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{file}: {exc}") from None


def _sending(workers: int, master: str | None) -> "Sending":
    from serve_app.loadtest.conductor import Sending

    if master is None:
        return Sending(workers)
    if not workers:
        raise ConfigError("--master needs --workers: how many to wait for")
    host, port = _host_port(master, "--master")
    return Sending(workers, host, port, remote=True)


def _host_port(text: str, name: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"{name}: {text!r} is not HOST:PORT such as 10.0.0.5:{DEFAULT_PORT}")
    return host, int(port)


def _be_worker(master: str, target: str, key: str) -> int:
    """Send what the master there hands out, until it says that all is done."""
    host, port = _host_port(master, "--worker")
    job = {"role": "worker", "host": host, "port": port, "target": target}
    process = subprocess.Popen(
        [sys.executable, "-m", "serve_app.loadtest.sender"],
        stdin=subprocess.PIPE,
        env={**os.environ, KEY_VARIABLE: key},
    )
    process.communicate(json.dumps(job).encode() + b"\n")
    return process.returncode


def _require_extra() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("jinja2", "locust", "matplotlib", "rich") if not find_spec(name)]
    if missing:
        raise ConfigError(f"{', '.join(missing)} missing: pip install 'flux-serve[loadtest]'")
