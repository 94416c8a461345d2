"""`flux-serve serve`: its greeting, its signals and its exit status, over a scripted `serve`."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from serve_app import launched
from serve_app.config import AppConfig
from serve_app.configfile import load_app_config
from serve_app.deployments import foreground, ray_compat
from serve_app.errors import ConfigError
from serve_app.launch import RESOURCES_VARIABLE, greeting, local_address, made_up_gpus, refuse_taken
from tests.machine import MACHINE

ROOT = Path(__file__).parents[2]
RUN = """
import sys
from pathlib import Path
sys.executable = sys.argv[1]  # what the launcher starts
from serve_app import launch
launch.STOP_TIMEOUT_S = float(sys.argv[3])
sys.exit(launch.serve_file(Path(sys.argv[2]), dashboard="--dashboard" in sys.argv))
"""
SERVE = f"""#!{sys.executable}
import http.server, os, sys, threading, time, yaml
open("pid", "w").write(str(os.getpid()))
class Ready(http.server.BaseHTTPRequestHandler):
    asked = 0
    def do_GET(self):
        Ready.asked += 1
        self.send_response(503 if Ready.asked == 1 else 200)
        self.end_headers()
    def log_message(self, *args): pass
print("serving", *sys.argv[1:4], *sys.argv[5:], flush=True)
port = yaml.safe_load(open(sys.argv[3]))["http_options"]["port"]
with os.fdopen(int(sys.argv[4]), "w") as report: report.write("[]")
try:
    server = http.server.HTTPServer(("127.0.0.1", port), Ready)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while True:  # an interrupt at the end of a request, in a destructor, would be lost
        time.sleep(600)
except KeyboardInterrupt:
    print("stopped clean", flush=True)
"""
STUBBORN_SERVE = SERVE.replace(
    'print("stopped clean", flush=True)',
    """import time
    try:
        print("drawing", flush=True)
        time.sleep(600)
    except KeyboardInterrupt:
        print("stopped at once", flush=True)""",
)
SILENT_SERVE = SERVE.replace(
    'print("serving", *sys.argv[1:4], *sys.argv[5:], flush=True)', ""
).replace('print("stopped clean", flush=True)', "pass")
DEAF_SERVE = SERVE.replace(
    "try:", "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\ntry:"
)
FAILING_SERVE = f"#!{sys.executable}\nimport sys\nsys.exit(7)\n"
REFUSING_SERVE = f"""#!{sys.executable}
import os, sys
with os.fdopen(int(sys.argv[4]), "w") as report:
    report.write('["args: too much", "args: too little"]')
print("ends by itself", flush=True)
sys.exit(1)
"""
Launch = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    data = yaml.safe_load((ROOT / "configs" / "local.yaml").read_text(encoding="utf-8"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        data["http_options"]["port"] = probe.getsockname()[1]
    path = tmp_path / "local.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


@pytest.fixture
def launch(tmp_path: Path, config: Path) -> Iterator[Launch]:
    """Runs the launcher in a process of its own, with a script in the place of `serve`."""
    processes: list[subprocess.Popen[str]] = []

    def run(
        script: str, stop_timeout_s: float = 60, options: tuple[str, ...] = ()
    ) -> "subprocess.Popen[str]":
        serve = tmp_path / "python"
        serve.write_text(script, encoding="utf-8")
        serve.chmod(0o755)
        environment = {**os.environ, "no_proxy": "*"}
        arguments = [str(serve), str(config), str(stop_timeout_s), *options]
        command = [sys.executable, "-c", RUN, *arguments]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=environment,
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        with contextlib.suppress(OSError, ValueError, psutil.Error):  # it has ended, as it should
            child = psutil.Process(int((tmp_path / "pid").read_text()))
            if str(tmp_path) in " ".join(child.cmdline()):
                child.kill()
        process.communicate()


def served(process: "subprocess.Popen[str]") -> tuple["subprocess.Popen[str]", Iterator[str]]:
    """The launcher, once it has told that its child is ready, and what it prints from then on."""
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    assert any("Ctrl-C stops it" in line for line in lines)
    return process, lines


@pytest.mark.parametrize(
    "stop",
    [signal.SIGINT, signal.SIGTERM, signal.SIGHUP],
    ids=["Ctrl-C", "a supervisor", "a closed terminal"],
)
def test_it_greets_when_ready_and_stops_its_child_clean(
    launch: Launch, config: Path, stop: signal.Signals
) -> None:
    process = launch(SERVE)
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    assert next(lines) == f"serving -m serve_app.launched {config}\n"
    told = "".join(line for line, _ in zip(lines, range(9), strict=False))
    assert "flux-serve is ready at http://127.0.0.1:" in told
    assert "sk-local-development" in told
    process.send_signal(stop)
    rest, _ = process.communicate(timeout=MACHINE.allow())
    assert rest.endswith("stopped clean\n")
    assert process.returncode == 0


def test_a_second_ctrl_c_does_not_wait_for_running_jobs(launch: Launch) -> None:
    process, lines = served(launch(STUBBORN_SERVE))
    process.send_signal(signal.SIGINT)
    assert any(line == "drawing\n" for line in lines)
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=MACHINE.allow())
    assert rest.strip() == "stopped at once"  # the greeting ends with an empty line


def test_when_nobody_reads_its_output_the_server_does_not_stay_alone(launch: Launch) -> None:
    process = launch(SILENT_SERVE)
    assert process.stdout is not None
    process.stdout.close()  # before the greeting
    assert process.stderr is not None
    assert "BrokenPipeError" in process.stderr.read()  # ends when neither of the two is left
    assert process.wait(MACHINE.allow()) != 0


@pytest.mark.parametrize("script", [STUBBORN_SERVE, DEAF_SERVE], ids=["stubborn", "deaf"])
def test_whoever_hammers_on_ctrl_c_leaves_no_server_behind(launch: Launch, script: str) -> None:
    process, _ = served(launch(script))
    deadline = time.monotonic() + MACHINE.allow()
    while process.poll() is None and time.monotonic() < deadline:
        process.send_signal(signal.SIGINT)
        # No key repeats as fast. Without a pause Python nests handlers until its stack is full.
        time.sleep(0.002)
    # It ends when nobody has the pipes any more: the launcher, and what it started.
    _, noise = process.communicate(timeout=MACHINE.allow())
    assert "launch.py" not in noise  # of a traceback


def test_a_server_that_does_not_stop_is_told_again_and_then_killed(
    launch: Launch, config: Path
) -> None:
    data = yaml.safe_load(config.read_text(encoding="utf-8"))
    data["applications"][0]["args"]["limits"] = {"request_timeout_s": 0.2}
    config.write_text(yaml.safe_dump(data), encoding="utf-8")
    process, _ = served(launch(DEAF_SERVE, stop_timeout_s=0.2))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=MACHINE.allow())
    assert process.returncode == 256 - signal.SIGKILL


def test_a_child_that_fails_gives_its_status(launch: Launch) -> None:
    process = launch(FAILING_SERVE)
    out, _ = process.communicate(timeout=MACHINE.allow())
    assert process.returncode == 7
    assert "ready" not in out


def test_the_child_is_told_to_start_the_dashboard(launch: Launch) -> None:
    process = launch(SERVE, options=("--dashboard",))
    assert process.stdout is not None
    assert process.stdout.readline().endswith(" --dashboard\n")


def test_what_the_child_finds_wrong_is_raised_and_nothing_is_served(launch: Launch) -> None:
    process = launch(REFUSING_SERVE)
    out, err = process.communicate(timeout=MACHINE.allow())
    assert (out, process.returncode) == ("ends by itself\n", 1)
    assert err.endswith("ConfigError: args: too much\nargs: too little\n")


def test_the_child_reports_every_problem_of_a_file_and_a_port_that_is_taken(config: Path) -> None:
    assert launched.problems_of(config) == []
    data = yaml.safe_load(config.read_text(encoding="utf-8"))
    with socket.create_server(("127.0.0.1", data["http_options"]["port"])):
        (taken,) = launched.problems_of(config)
    assert "is taken by another server" in taken
    data["applications"][0] |= {"argz": {}, "args": {"models": []}}
    config.write_text(yaml.safe_dump(data), encoding="utf-8")
    unknown, invalid = launched.problems_of(config)
    assert "argz: unknown key" in unknown
    assert "args.models" in invalid


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """The arguments of each `ray.init`, which starts nothing here."""
    calls: list[dict[str, object]] = []
    node = {"NodeManagerAddress": "10.0.0.1", "MetricsExportPort": 8080}
    monkeypatch.setattr(foreground.ray, "init", lambda **words: calls.append(words))
    monkeypatch.setattr(foreground.ray, "nodes", lambda: [node])
    monkeypatch.setattr(foreground.os, "environ", {"RAY_ADDRESS": "local"})
    return calls


def test_ray_starts_without_its_dashboard(
    started: list[dict[str, object]], capsys: pytest.CaptureFixture[str]
) -> None:
    foreground.os.environ["RAY_enable_worker_prestart"] = "1"
    dashboard = ray_compat.services.start_api_server
    foreground.start_ray(dashboard=False)
    assert started == [{"address": "local", "namespace": "serve", "include_dashboard": False}]
    assert ray_compat.services.start_api_server is dashboard
    assert "http://10.0.0.1:8080/metrics" in capsys.readouterr().out
    assert foreground.os.environ["RAY_enable_worker_prestart"] == "1"
    assert foreground.os.environ["RAY_prestart_worker_first_driver"] == "0"


@pytest.mark.parametrize("address", ["local", "10.0.0.9:6379", "ray://10.0.0.9:10001", "auto"])
def test_a_running_cluster_is_taken_as_it_is(
    started: list[dict[str, object]], address: str
) -> None:
    foreground.os.environ["RAY_ADDRESS"] = address
    foreground.start_ray(dashboard=address == "local")
    assert started == [{"address": address, "namespace": "serve"}]


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("serve_app.launch", {"ray", "torch", "sqlalchemy"}),
        ("serve_app.launched", {"ray", "torch", "sqlalchemy"}),
        ("serve_app.graph", {"torch", "diffusers", "sqlalchemy", "alembic", "obstore"}),
    ],
)
def test_what_a_start_waits_for_is_not_imported(module: str, heavy: set[str]) -> None:
    script = f"import sys, {module}; print(*sys.modules.keys() & {heavy!r})"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split() == []


def pasted(text: str) -> list[str]:
    """The words of the greeting's request as a shell understands them."""
    curl = text[text.index("curl") : text.index("Ctrl-C")].strip()
    environment = {**os.environ, "FLUX_SERVE_API_KEY": "sk-from-environment"}
    command = ["sh", "-c", f'set -- {curl}; printf "%s\\n" "$@"']
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return done.stdout.splitlines()


def test_the_greeting_has_a_request_to_paste() -> None:
    app = load_app_config(ROOT / "configs" / "local.yaml")
    words = pasted(greeting(app, "http://127.0.0.1:8000"))
    assert words[:2] == ["curl", "http://127.0.0.1:8000/v1/images/generations"]
    assert "Authorization: Bearer sk-local-development" in words
    assert json.loads(words[words.index("-d") + 1])["model"] == "flux-mini"


def test_without_a_development_key_the_request_takes_one_from_the_environment() -> None:
    app = AppConfig.model_validate({"models": [{"id": "flux-mini"}]})
    assert "Authorization: Bearer sk-from-environment" in pasted(greeting(app, "http://x"))


@pytest.mark.parametrize(
    ("options", "address"),
    [
        ({"host": "127.0.0.1", "port": 1234}, "http://127.0.0.1:1234"),
        ({"host": "0.0.0.0"}, "http://127.0.0.1:8000"),
        ({"host": "::1"}, "http://[::1]:8000"),
        ({"host": "::"}, "http://[::1]:8000"),
        ({"host": "gpu-7"}, "http://gpu-7:8000"),
        ({}, "http://127.0.0.1:8000"),
        (None, "http://127.0.0.1:8000"),
    ],
)
def test_the_address_is_one_that_this_machine_can_use(
    tmp_path: Path, options: dict[str, object] | None, address: str
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"http_options": options}), encoding="utf-8")
    assert local_address(path) == address


def test_an_address_that_somebody_listens_on_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match="is taken by another server"):
            refuse_taken(address)
    refuse_taken(address)


def gpus_of(path: Path) -> dict[str, str]:
    return made_up_gpus(path, load_app_config(path))


def test_gpus_are_made_up_only_where_every_model_is_simulated(
    monkeypatch: pytest.MonkeyPatch, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(RESOURCES_VARIABLE, raising=False)
    simulated = ROOT / "configs" / "loadtest.yaml"
    assert json.loads(gpus_of(simulated)[RESOURCES_VARIABLE]) == {"GPU": 8}
    assert "SIMULATED" in capsys.readouterr().out
    assert gpus_of(config) == {}
    assert gpus_of(ROOT / "configs" / "gpu.yaml") == {}
    assert capsys.readouterr().out == ""
    monkeypatch.setenv(RESOURCES_VARIABLE, '{"GPU": 2}')
    assert gpus_of(simulated) == {}
