"""`flux-serve` as an operator types it."""

import csv
import getpass
import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from serve_app import __version__, launch
from serve_app.cli import app

COMMANDS = [
    ["generate"],
    ["quote"],
    ["status"],
    ["accounts", "create"],
    ["accounts", "list"],
    ["accounts", "show"],
    ["accounts", "disable"],
    ["accounts", "enable"],
    ["accounts", "budget"],
    ["keys", "create"],
    ["keys", "list"],
    ["keys", "revoke"],
    ["keys", "limit"],
    ["usage"],
    ["entries", "list"],
    ["acts", "list"],
    ["grant"],
    ["audit"],
    ["db", "upgrade"],
    ["images", "sweep"],
    ["check-config"],
    ["loadtest"],
]


@pytest.fixture
def url(tmp_path):
    return f"sqlite+aiosqlite:///{tmp_path}/ledger.db"


@pytest.fixture
def run(url):
    """Run a command on a ledger that has its tables."""

    def invoke(*arguments, code=0):
        result = CliRunner().invoke(app, [*arguments, "--ledger-url", url])
        assert result.exit_code == code, result.output
        return result

    invoke("db", "upgrade")
    return invoke


def run_json(run, *arguments, code=0):
    return json.loads(run(*arguments, "--json", code=code).stdout)


def test_importing_the_cli_loads_nothing_heavy():
    script = (
        "import sys, serve_app.cli\n"
        "heavy = {'ray', 'torch', 'sqlalchemy', 'alembic', 'diffusers', 'starlette', 'gevent',"
        " 'locust', 'matplotlib', 'rich.live', 'httpx', 'PIL'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_version_is_the_packages():
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output.strip()) == (0, f"flux-serve {__version__}")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_explains_itself_with_an_example(command):
    result = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert f"Example: flux-serve {' '.join(command)}" in result.output


def test_an_account_goes_from_nothing_to_a_working_key(run):
    created = run_json(run, "accounts", "create", "alice")
    assert created["available"] == 0
    granted = run_json(run, "grant", "alice", "1_000_000", "--reason", "trial")
    assert (granted["id"], granted["available"]) == (created["id"], 1_000_000)
    key = run_json(run, "keys", "create", "alice", "--expires-at", "2100-01-31")
    assert key["secret"].startswith(key["prefix"])
    assert key["expires_at"] == "2100-01-31T00:00:00+00:00"
    assert key["scopes"] == ["images"]
    (listed,) = run_json(run, "keys", "list", "alice")
    assert listed["id"] == key["id"]
    assert "secret" not in listed
    assert "sha256" not in listed
    revoked = run_json(run, "keys", "revoke", key["id"])
    assert revoked["revoked_at"] is not None
    assert run_json(run, "accounts", "show", "alice")["granted"] == 1_000_000
    assert run_json(run, "audit")["balanced"] is True


def test_a_new_secret_stands_alone_on_stdout_for_scripts(run):
    run("accounts", "create", "alice")
    result = run("keys", "create", "alice", "--scope", "images", "--scope", "admin")
    (line,) = result.stdout.splitlines()
    assert line.startswith("sk-")
    assert "not shown again" in result.stderr


def test_a_grant_without_a_reason_is_refused(run):
    run("accounts", "create", "alice")
    assert "--reason" in run("grant", "alice", "10", code=2).output
    assert run_json(run, "accounts", "show", "alice")["granted"] == 0


def test_a_grant_under_a_key_is_made_once(run):
    run("accounts", "create", "alice")
    grant = ("grant", "alice", "10", "--reason", "invoice 17", "--idempotency-key", "invoice-17")
    run(*grant)
    again = run(*grant)
    assert "nothing was added" in again.stderr
    assert run_json(run, "accounts", "show", "alice")["granted"] == 10
    refused = run("grant", "alice", "11", *grant[3:], code=1)
    assert "another grant" in refused.stderr
    assert run_json(run, "accounts", "show", "alice")["granted"] == 10


def test_limits_and_budgets_are_set_whole(run):
    run("accounts", "create", "alice")
    key = run_json(run, "keys", "create", "alice", "--rpm", "6", "--models", "a,b", "--models", "c")
    assert (key["rpm"], key["images_max"], key["models"]) == (6, None, ["a", "b", "c"])
    limited = run_json(run, "keys", "limit", key["id"], "--images", "3")
    assert (limited["rpm"], limited["images_max"], limited["models"]) == (None, 3, None)
    bounded = run_json(run, "accounts", "budget", "alice", "--day", "5_000", "--month", "9_000")
    assert (bounded["day_budget"], bounded["month_budget"]) == (5000, 9000)
    lifted = run_json(run, "accounts", "budget", "alice", "--month", "7_000")
    assert (lifted["day_budget"], lifted["month_budget"]) == (None, 7000)


def test_acts_say_who_did_what_and_why(run):
    run("accounts", "create", "alice", "--reason", "ticket 7")
    run("grant", "alice", "10", "--reason", "invoice 17")
    grant, create = run_json(run, "acts", "list")
    assert (create["verb"], create["reason"]) == ("accounts create", "ticket 7")
    assert (grant["verb"], grant["reason"], grant["detail"]) == (
        "grant",
        "invoice 17",
        {"units": 10},
    )
    assert create["actor"] == grant["actor"] == f"cli:{getpass.getuser()}"
    assert run_json(run, "acts", "list", "--limit", "1") == [grant]
    assert run_json(run, "acts", "list", "--subject", "key_x") == []
    header, newest, _ = run("acts", "list").stdout.splitlines()
    assert header.split() == ["WHEN", "ACTOR", "VERB", "SUBJECT", "REASON", "DETAIL"]
    assert "units=10" in newest


def test_entries_can_be_opened_in_a_spreadsheet_without_running_anything(run):
    run("accounts", "create", "alice")
    run("grant", "alice", "10", "--reason", "=cmd|'/c calc'!A1, \"x\"")
    header, row = csv.reader(run("entries", "list", "--csv").stdout.splitlines())
    assert header == [
        "id", "account_id", "kind", "units", "hold_id", "created_at", "memo", "idempotency_key",
    ]  # fmt: skip
    assert row[6] == "'=cmd|'/c calc'!A1, \"x\""
    assert (row[2], row[3]) == ("grant", "10")


def test_usage_of_a_ledger_that_drew_nothing_is_empty(run):
    assert run_json(run, "usage") == []
    (only,) = run("usage", "--csv").stdout.splitlines()
    assert only == "day,account_id,model,jobs,images,units"
    header = run("usage", "--by", "model,key").stdout.split()
    assert header == ["KEY", "MODEL", "JOBS", "IMAGES", "UNITS"]


def test_tables_are_readable(run):
    run("accounts", "create", "alice")
    run("grant", "alice", "1234567", "--reason", "trial")
    run("keys", "create", "alice")
    header, row = run("accounts", "list").stdout.splitlines()
    columns = ["ID", "NAME", "GRANTED", "CAPTURED", "HELD", "AVAILABLE"]
    assert header.split() == [*columns, "A", "DAY", "A", "MONTH", "DISABLED"]
    assert row.split()[1:] == ["alice", "1,234,567", "0", "0", "1,234,567", "-", "-", "-"]
    assert "sk-" in run("keys", "list").stdout
    assert run("audit").stdout.startswith("balanced: 1 accounts")


def test_an_empty_listing_is_a_header_or_an_empty_list(run):
    assert len(run("accounts", "list").stdout.splitlines()) == 1
    assert run_json(run, "accounts", "list") == []


def test_an_account_can_be_disabled_and_enabled(run):
    run("accounts", "create", "alice")
    assert run_json(run, "accounts", "disable", "alice")["disabled_at"] is not None
    assert run_json(run, "accounts", "enable", "alice")["disabled_at"] is None


def test_an_upgrade_says_where_the_ledger_stands(run, tmp_path, url):
    assert "already at revision" in run("db", "upgrade").stdout
    fresh = f"sqlite:///{tmp_path}/other.db"
    result = CliRunner().invoke(app, ["db", "upgrade", "--json", "--ledger-url", fresh])
    moved = json.loads(result.stdout)
    assert moved["from"] is None
    assert moved["to"]


def test_an_audit_of_broken_books_fails(run, tmp_path):
    import sqlite3

    run("accounts", "create", "alice")
    run("grant", "alice", "10", "--reason", "trial")
    connection = sqlite3.connect(tmp_path / "ledger.db")
    connection.execute("UPDATE accounts SET captured = 3")
    connection.commit()
    connection.close()
    result = run("audit", code=1)
    assert "NOT BALANCED" in result.stdout
    assert "sum(entries) = granted - captured" in result.stdout
    assert run_json(run, "audit", code=1)["balanced"] is False


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["accounts", "show", "nobody"], "no account 'nobody'"),
        (["accounts", "create", "alice"], "already an account"),
        (["grant", "alice", "0", "--reason", "x"], "from 1 to"),
        (["keys", "create", "alice", "--scope", "everything"], "Scopes are"),
        (["keys", "create", "alice", "--expires-at", "soon"], "--expires-at"),
        (["keys", "create", "alice", "--expires-at", "2001-01-01"], "in the future"),
        (["keys", "revoke", "key_x"], "no key 'key_x'"),
        (["keys", "limit", "key_x"], "no key 'key_x'"),
        (["keys", "create", "alice", "--models", "a,,b"], "Models are"),
        (["accounts", "budget", "alice", "--day", "0"], "whole number from 1"),
        (["usage", "--from", "soon"], "--from"),
        (["usage", "--by", "hour"], "one or more of day"),
        (["entries", "list", "--account", "bob"], "no account 'bob'"),
        (["audit", "--config", "x.yaml"], "not both"),
    ],
)
def test_an_expected_failure_is_one_line(run, arguments, words):
    run("accounts", "create", "alice")
    result = run(*arguments, code=1)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert words in line


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite:///{folder}/new.db", "flux-serve db upgrade"),
        ("sqlite:///{folder}", "unable to open database file"),
        ("sqlite://", "needs a file"),
        ("sqlite:///${{NOT_SET_ANYWHERE}}", "NOT_SET_ANYWHERE"),
        ("nonsense", "not a database URL"),
    ],
)
def test_a_ledger_that_cannot_be_used_says_what_to_do(tmp_path, url, words):
    address = url.format(folder=tmp_path)
    result = CliRunner().invoke(app, ["accounts", "list", "--ledger-url", address])
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert words in line


def test_without_a_ledger_the_options_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["accounts", "list"])
    assert result.exit_code == 1
    assert "--ledger-url" in result.stderr


CONFIG = """
applications:
  - name: flux-serve
    import_path: serve_app.graph:build
    args:
      models: [{{id: flux-mini}}]
      ledger: {{url: "sqlite:///{folder}/configured.db", migrate_on_start: {migrate}}}
"""


def flux_serve(*arguments, cwd):
    """In a process of its own: reading a config file loads Ray."""
    return subprocess.run(
        [sys.executable, "-m", "serve_app.cli", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
    )


def test_the_ledger_of_a_config_file_is_used_and_migrated_when_it_says_so(tmp_path):
    file = tmp_path / "serve.yaml"
    file.write_text(CONFIG.format(folder=tmp_path, migrate="true"))
    done = flux_serve("accounts", "create", "alice", "-c", "serve.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "configured.db").exists()


def test_configs_local_yaml_is_the_default(tmp_path):
    (tmp_path / "configs").mkdir()
    file = tmp_path / "configs" / "local.yaml"
    file.write_text(CONFIG.format(folder=tmp_path, migrate="false"))
    done = flux_serve("accounts", "list", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "flux-serve db upgrade" in done.stderr


def test_check_config_lists_every_problem(tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text("applications: [{name: a, import_path: 'serve_app.graph:build', argz: {}}]\n")
    done = flux_serve("check-config", "bad.yaml", cwd=tmp_path)
    assert done.returncode == 1
    assert "argz" in done.stderr
    missing = flux_serve("audit", "-c", "missing.yaml", cwd=tmp_path)
    assert missing.returncode == 1
    assert missing.stderr.startswith("error: missing.yaml")


@pytest.mark.parametrize("options", [[], ["--dashboard"]])
def test_serve_has_a_flag_for_rays_dashboard(monkeypatch, options):
    asked = []
    monkeypatch.setattr(
        launch, "serve_file", lambda file, *, dashboard: asked.append((str(file), dashboard)) or 7
    )
    result = CliRunner().invoke(app, ["serve", "x.yaml", *options])
    assert (asked, result.exit_code) == ([("x.yaml", bool(options))], 7)


def test_serve_prints_every_problem_of_a_file_and_starts_nothing(tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text("applications: [{name: a, import_path: 'serve_app.graph:build', argz: {}}]\n")
    done = flux_serve("serve", "bad.yaml", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: applications[0].argz: unknown key")
    assert done.stderr.count("\n") == 1


def test_expired_images_are_swept_by_hand(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "serve.yaml"
    args = {"models": [{"id": "flux-mini"}], "store": {"url": f"file://{tmp_path}/images"}}
    application = {"name": "a", "import_path": "serve_app.graph:build", "args": args}
    config.write_text(json.dumps({"applications": [application]}))
    name = f"img_{0:048x}.png"
    expired = tmp_path / "images" / "00" / name
    expired.parent.mkdir(parents=True)
    expired.write_bytes(b"picture")
    os.utime(expired, (1, 1))
    for deleted in (1, 0):
        result = CliRunner().invoke(app, ["images", "sweep", "--json", "--config", str(config)])
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout) == {"deleted": deleted}
    assert not expired.exists()
    args["store"] = None
    config.write_text(json.dumps({"applications": [application]}))
    result = CliRunner().invoke(app, ["images", "sweep", "--config", str(config)])
    assert (result.exit_code, "no image store" in result.output) == (1, True)
