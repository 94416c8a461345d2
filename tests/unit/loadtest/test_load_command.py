"""`flux-serve loadtest` as people mistype it: nothing is sent, and the message names the option."""

import inspect
from pathlib import Path

import pytest
from load_kit import outcome, run
from typer.testing import CliRunner

from serve_app.cli import app
from serve_app.commands import loadtest
from serve_app.commands.loadtest import exit_status
from serve_app.loadtest.report import Judged
from serve_app.loadtest.slo import judge, parse_slos

NOBODY = "http://127.0.0.1:9"
"""The discard port: nobody listens there."""


def invoke(*options: str, target: str = NOBODY, key: str = "sk-x") -> tuple[int, str]:
    result = CliRunner().invoke(
        app, ["loadtest", "--target", target, *options], env={"FLUX_SERVE_API_KEY": key}
    )
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--profile", "spike"), "--profile: 'spike'"),
        (("--duration", "60"), "--duration: '60'"),
        (("--timeout", "0s"), "--timeout: '0s'"),
        (("--peak-rps", "0"), "--peak-rps"),
        (("--peak-rps", "nan"), "--peak-rps"),
        (("--peak-rps", "1e9"), "at most 1,000,000"),
        (("--slo", "p95=2"), "--slo p95"),
        (("--mix", "nowhere.yaml"), "nowhere.yaml"),
        (("--profile", "nowhere.csv"), "nowhere.csv"),
        (("--profile", "x.csv", "--peak-rps", "2"), "no --peak-rps"),
        (("--master", "127.0.0.1:5557"), "--workers"),
        (("--worker", "5557"), "--worker: '5557'"),
        (("--key-file", "nowhere.key"), "nowhere.key"),
        (("--profile", "ramp", "--duration", "1ms"), "nothing would be sent"),
    ],
)
def test_a_bad_option_is_named_and_nothing_is_sent(options: tuple[str, ...], said: str) -> None:
    code, output = invoke(*options)
    assert code == 1
    assert said in output
    assert NOBODY not in output  # it was not even asked


@pytest.mark.parametrize(
    "target", ["", "127.0.0.1:8000", "ftp://x", "http://u:p@x", "http://x?a=b"]
)
def test_a_target_that_is_no_base_url_is_refused(target: str) -> None:
    code, output = invoke(target=target)
    assert code == 1
    assert "--target" in output


def test_without_a_key_it_says_where_to_put_one() -> None:
    code, output = invoke(key="")
    assert code == 1
    assert "FLUX_SERVE_API_KEY" in output
    assert "--key-file" in output


def test_a_key_cannot_be_given_on_the_command_line() -> None:
    assert not {"key", "api_key", "admin_key"} & set(
        inspect.signature(loadtest.loadtest).parameters
    )


def test_a_server_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    code, output = invoke("--out", str(tmp_path))
    assert code == 1
    assert NOBODY in output


@pytest.mark.parametrize(
    ("charged", "slo", "expected"),
    [
        (200, "p95=10s", 0),
        (200, "p95=1ms", 3),
        (201, "p95=10s", 4),
        (201, "p95=1ms", 4),  # money outweighs time
        (300, "p95=10s", 5),
    ],
)
def test_the_exit_status_tells_what_went_wrong(charged: int, slo: str, expected: int) -> None:
    made = run([outcome(0), outcome(1), outcome(2, code="client_timeout")], [], charged)
    verdicts = judge(parse_slos(slo), made.figures.objectives())
    assert exit_status(Judged(made, verdicts, None)) == expected
