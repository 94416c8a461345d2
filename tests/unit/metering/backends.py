"""The databases under the ledger's tests, each with what a test does behind the ledger's back."""

import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from serve_app.metering import migrate
from tests.machine import MACHINE
from tests.postgres import Postgres

TABLES = "accounts, api_keys, holds, entries, usage_days, acts, gateways"
TEMPLATE = "ledger_template"
ALEMBIC = "alembic_version"
OWN = " name NOT LIKE 'alembic%'"
LOCK_WAIT_S = 0.02
RESTART = (
    "DO $$ DECLARE s record; BEGIN FOR s IN SELECT sequencename FROM pg_sequences LOOP"
    " EXECUTE format('ALTER SEQUENCE %I RESTART', s.sequencename); END LOOP; END $$"
)


class Backend(Protocol):
    """One database that holds one ledger."""

    @property
    def url(self) -> str: ...

    def execute(self, statement: str) -> None:
        """Change data as a person with a console does."""
        ...

    def damage(self, statement: str) -> None:
        """Change data that the database itself would not have let change."""
        ...

    def contents(self) -> str:
        """Everything on file, as text."""
        ...

    def schema(self) -> list[str]:
        """What makes every table and index, sorted; Alembic's own table not."""
        ...

    def tables(self) -> set[str]: ...

    def locked(self) -> AbstractContextManager[None]:
        """Somebody else is writing, and takes his time."""
        ...

    def impatient(self) -> float:
        """The `busy_timeout_s` of ledgers that shall not wait for `locked`, and may else be slow.

        Of those that connect from now on.
        """
        ...

    def clear(self) -> None:
        """Back to an empty ledger."""
        ...


@dataclass(frozen=True)
class Sqlite:
    path: Path

    @property
    def url(self) -> str:
        return f"sqlite+aiosqlite:///{self.path}"

    def execute(self, statement: str) -> None:
        self._script(statement)

    def damage(self, statement: str) -> None:
        self._script("PRAGMA ignore_check_constraints = ON", statement)

    def contents(self) -> str:
        with self._open() as connection:
            return "\n".join(connection.iterdump())

    def schema(self) -> list[str]:
        found = self._ask("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND" + OWN)
        return sorted(_in_order(" ".join(sql.split())) for sql in found)

    def tables(self) -> set[str]:
        return set(self._ask("SELECT name FROM sqlite_master WHERE type = 'table' AND" + OWN))

    def _ask(self, query: str) -> list[str]:
        with self._open() as connection:
            return [row[0] for row in connection.execute(query)]

    def _script(self, *statements: str) -> None:
        with self._open() as connection:
            for statement in statements:
                connection.execute(statement)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            yield connection

    def clear(self) -> None:
        self._script(*(f"DELETE FROM {table}" for table in reversed(TABLES.split(", "))))

    def impatient(self) -> float:
        return LOCK_WAIT_S  # SQLite waits for nothing else

    @contextmanager
    def locked(self) -> Iterator[None]:
        with self._open() as blocker:
            blocker.execute("BEGIN IMMEDIATE")
            yield
            blocker.execute("ROLLBACK")


@dataclass
class PostgresDatabase:
    server: Postgres
    name: str
    as_made: bool = True
    """No test has done anything to it but to use it as a ledger."""

    @property
    def url(self) -> str:
        return self.server.url(self.name)

    def execute(self, statement: str) -> None:
        self.as_made = False
        self.server.sql(statement, self.name)

    def damage(self, statement: str) -> None:
        drop = (
            "DO $$ DECLARE c record; BEGIN FOR c IN"
            " SELECT conname, conrelid::regclass AS owner FROM pg_constraint"
            " WHERE contype IN ('c', 'f') AND connamespace = 'public'::regnamespace"
            " LOOP EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', c.owner, c.conname);"
            " END LOOP; END $$"
        )
        self.execute(f"{drop}; {statement}")

    def contents(self) -> str:
        return self.server.dump(self.name, "--inserts")

    def schema(self) -> list[str]:
        dump = self.server.dump(self.name, "-s", "--no-owner", "-T", "alembic*")
        statements = (" ".join(text.split()) for text in dump.split(";\n"))
        # From the verb on: what stands before it are pg_dump's remarks.
        found = (re.search(r"(CREATE|ALTER) .*", text) for text in statements)
        return sorted(match[0] for match in found if match)

    def tables(self) -> set[str]:
        query = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        return {name for name in self.server.sql(query, self.name).split() if name != ALEMBIC}

    def locked(self) -> AbstractContextManager[None]:
        return self.server.during(f"LOCK TABLE {TABLES} IN EXCLUSIVE MODE", self.name)

    def impatient(self) -> float:
        wait_ms = round(1000 * LOCK_WAIT_S)
        self.execute(f"ALTER DATABASE {self.name} SET lock_timeout = {wait_ms}")
        return MACHINE.allow(20)

    def clear(self) -> None:
        # A third of what TRUNCATE costs, and a fifth of what a new database does.
        emptied = "".join(f"DELETE FROM {table};" for table in reversed(TABLES.split(", ")))
        self.server.sql(f"{emptied} {RESTART}", self.name)


def _in_order(statement: str) -> str:
    """The same, columns and constraints sorted: SQLite adds a column after the constraints."""
    head, bracket, body = statement.partition("(")
    parts, depth = [""], 0
    for character in body.rpartition(")")[0]:
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return f"{head}{bracket}{', '.join(sorted(part.strip() for part in parts))})"


def copy_of(migrated: Path, path: Path) -> Sqlite:
    shutil.copy(migrated, path)
    return Sqlite(path)


def make_template(server: Postgres) -> None:
    """A migrated database to copy: migrating for every test would be most of the run."""
    server.sql(f"CREATE DATABASE {TEMPLATE}")
    migrate.upgrade(server.url(TEMPLATE))


def copy_of_template(server: Postgres, name: str) -> PostgresDatabase:
    server.sql(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
    return PostgresDatabase(server, name)
