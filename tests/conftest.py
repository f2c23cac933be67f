"""Fixtures on real servers: one Postgres, Redis and S3 for the session; a database and a bucket for each test.

The servers are the embedded ones in a temporary home, except those named by RAGLLAVA_DATABASE_URL,
RAGLLAVA_REDIS_URL or RAGLLAVA_S3_*. A server that does not come up fails the tests that need it.
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
import uuid
from collections import Counter
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import hypothesis
import pytest
from minio.error import S3Error
from psycopg import sql
from psycopg.errors import ObjectInUse
from pydantic import SecretStr
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

import migrations
from ragllava.local.services import running_services
from ragllava.settings import Settings
from ragllava.stores.database import make_engine
from ragllava.stores.s3_client import make_client
from tests.support.browser import open_browser
from tests.support.waiting import wait_for

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# `make test` shares the tests out to processes of pytest-xdist, each with servers of its own. Where they are given one
# Redis by address, each takes its share of the databases 1 to 15.
_PROCESSES = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_PROCESS = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_redis_databases = list(range(1 + _PROCESS, 16, _PROCESSES))  # the one that was taken last is at the end
_redis_users: Counter[int] = Counter()
if _PROCESSES > 1:  # torch's threads of one process would take the processors from the others
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples in every run, however slow the machine: who changes something sees what the change did. For new
# examples say `pytest --hypothesis-profile default`.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")

# The files that take longest. Processes that share the tests out begin with them: one at the end would run alone.
_LONGEST = (
    "acceptance/test_bench.py",
    "acceptance/test_crashes.py",
    "acceptance/test_learning.py",
    "acceptance/test_command_line.py",
    "acceptance/test_demo.py",
    "acceptance/test_training.py",
    "integration/training/test_train_job.py",
    "integration/local/test_local.py",
    "acceptance/test_chaos.py",
    "acceptance/test_workers.py",
    "acceptance/test_console.py",
    "acceptance/test_events.py",
    "acceptance/test_reindexing.py",
    "integration/console/test_jobs.py",
    "integration/console/test_archives.py",
    "unit/training/finetune/test_finetune_processes.py",
    "integration/console/test_review.py",
    "unit/lab/test_ablation.py",
    "integration/stores/test_old_version.py",
    "integration/console/test_learning.py",
    "integration/evaluation/test_eval.py",
    "integration/local/test_strangers.py",
    "integration/api/test_alerts.py",
    "integration/evaluation/test_eval_styles.py",
    "unit/lab/test_mini_recipe.py",
    "unit/lab/test_gate_trainings.py",
    "integration/local/test_backup_drill.py",
)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Without the garbage collector, which would take half of the time; what is there then is never looked at again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def pytest_unconfigure() -> None:
    """Torch's libraries complain at the end of the process about what is never looked at."""
    gc.unfreeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, where processes share the tests out."""
    if _PROCESSES > 1:
        first = {Path(__file__).parent / name: place for place, name in enumerate(_LONGEST)}
        items.sort(key=lambda item: first.get(item.path, len(first)))


@pytest.fixture(scope="session")
def services() -> Iterator[Settings]:
    """The running services, shared by all tests: use `settings` for a database and a bucket of your own."""
    home = Path(tempfile.mkdtemp(prefix="ragllava-tests-"))
    given = Settings(home=home)
    try:
        with running_services(given) as running:
            if given.database_url is None:
                _hurry(running)
            yield running
    finally:
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def template_database(services: Settings) -> Iterator[str]:
    """The name of a migrated, empty database to clone. Nobody may be connected to it while it is cloned."""
    with _new_database(services) as name:
        own = services.model_copy(update=_urls_of(services, name))
        migrations.upgrade(
            own.require_database_owner(), application_url=own.require_database(), api_url=own.api_database()
        )
        with _Clones(services, name) as clones:
            _clones[name] = clones
            yield name


@pytest.fixture
def settings(services: Settings, template_database: str) -> Iterator[Settings]:
    """Settings of a migrated database, a Redis database and a bucket (made at first use) that are the test's own."""
    with own_settings(services, template_database) as own:
        yield own


@contextmanager
def own_settings(services: Settings, template_database: str) -> Iterator[Settings]:
    """What the fixture `settings` gives, for fixtures of a wider scope; of `template0`, an empty database."""
    database = _new_database(services) if template_database == "template0" else _clones[template_database].one()
    with database as name:
        database_no = _take_redis_database()
        redis_url = _redis_url(services, database_no)
        own = {"redis_url": SecretStr(redis_url), "s3_bucket": f"test-{uuid.uuid4().hex}"}
        _empty_redis(redis_url)
        settings = services.model_copy(update=_urls_of(services, name) | own)
        try:
            yield settings
        finally:
            _redis_users[database_no] -= 1
            _remove_buckets(settings)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium, for all tests: a process can drive one at a time."""
    with open_browser() as browser:
        yield browser


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    """An engine on the test's own database, with the rights of the application."""
    engine = make_engine(settings.require_database(), name="test")
    yield engine
    engine.dispose()


@pytest.fixture
def owner_engine(settings: Settings) -> Iterator[Engine]:
    """An engine on the test's own database, with the rights of the owner of its tables: for DDL and ANALYZE."""
    engine = make_engine(settings.require_database_owner(), name="test owner")
    yield engine
    engine.dispose()


@pytest.fixture
def environment(settings: Settings) -> dict[str, str]:
    """The variables that give `settings` to a process that a test starts; add them to os.environ's."""
    return environment_of(settings)


def environment_of(settings: Settings) -> dict[str, str]:
    """Every setting that differs from its default, as RAGLLAVA_ variables."""
    found = {}
    for name, value in settings:
        if value is not None and value != Settings.model_fields[name].default:
            plain = value.get_secret_value() if hasattr(value, "get_secret_value") else value
            found[f"RAGLLAVA_{name.upper()}"] = str(plain)
    return found


def _hurry(services: Settings) -> None:
    """The tests' own Postgres need not survive a loss of power: each of them makes and drops a database. Nor need its
    passwords withstand guessing: the usual 4,096 rounds take longer than all else at each of many thousand sign-ins.
    """
    server = create_engine(services.require_database_owner(), poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text("SET scram_iterations = 1"))
        for url in map(make_url, (services.require_database_owner(), services.require_database())):
            password = sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(str(url.username)), str(url.password))
            connection.exec_driver_sql(password.as_string())
        # Those of the roles that migrations make, too.
        for setting, value in {"fsync": "off", "full_page_writes": "off", "scram_iterations": "1"}.items():
            connection.execute(text(f"ALTER SYSTEM SET {setting} = {value}"))
        connection.execute(text("SELECT pg_reload_conf()"))


@contextmanager
def _new_database(services: Settings) -> Iterator[str]:
    server = _Server(services)
    name = server.create("template0")
    try:
        yield name
    finally:
        server.drop(name)
        server.close()


class _Server:
    """Databases of a server, made and dropped by their owner, whose session stays open: no test signs in for that."""

    def __init__(self, services: Settings) -> None:
        url = services.require_database_owner()
        self._engine = create_engine(url, pool_pre_ping=True, isolation_level="AUTOCOMMIT")

    def create(self, template: str) -> str:
        name = f"test_{uuid.uuid4().hex}"
        with self._engine.connect() as connection:
            # Copying files takes half of the time that the default takes to write all blocks to the log.
            connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY"))
        return name

    def drop(self, name: str) -> None:
        wait_for(f"the end of the sessions of {name}", lambda: self._is_dropped(name))

    def _is_dropped(self, name: str) -> bool:
        try:
            with self._engine.connect() as connection:
                connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        except OperationalError as error:  # Postgres ends its sessions, and waits five seconds for that
            if not isinstance(error.orig, ObjectInUse):
                raise
            return False
        return True

    def close(self) -> None:
        """End the session."""
        self._engine.dispose()


class _Clones(AbstractContextManager["_Clones"]):
    """Copies of a database: the next one is made, and the last one dropped, while a test runs."""

    def __init__(self, services: Settings, template: str) -> None:
        self._server, self._template = _Server(services), template
        self._thread = ThreadPoolExecutor(1)
        self._next = self._thread.submit(self._server.create, template)
        self._drops: list[Future[None]] = []

    @contextmanager
    def one(self) -> Iterator[str]:
        name = self._next.result()
        self._next = self._thread.submit(self._server.create, self._template)
        try:
            yield name
        finally:
            self._drops.append(self._thread.submit(self._server.drop, name))

    def __exit__(self, *_error: object) -> None:
        self._thread.shutdown()
        self._server.drop(self._next.result())
        self._server.close()
        for drop in self._drops:
            drop.result()  # raises what a drop has raised


_clones: dict[str, _Clones] = {}  # by the name of their template


def _urls_of(services: Settings, database: str) -> dict[str, SecretStr]:
    """The settings of a database on the same server."""
    urls = {"database_url": services.require_database(), "database_owner_url": services.require_database_owner()}
    if (api_url := services.api_database()) is not None:
        urls["api_database_url"] = api_url
    return {name: SecretStr(make_url(url).set(database=database).render_as_string(False)) for name, url in urls.items()}


def _remove_buckets(settings: Settings) -> None:
    """The test's bucket and those named after it: each takes volumes of the store, which has room for some sixty."""
    client = make_client(settings)
    for bucket in client.list_buckets():
        if bucket.name.startswith(settings.s3_bucket):
            try:
                client.remove_bucket(bucket.name)  # SeaweedFS removes what is in it, in a fraction of the time
            except S3Error as error:
                if error.code != "BucketNotEmpty":
                    raise
                for found in client.list_objects(bucket.name, recursive=True):
                    client.remove_object(bucket.name, found.object_name)
                client.remove_bucket(bucket.name)


def _take_redis_database() -> int:
    """A database that nobody uses, if there is one. A test then empties none that a fixture of a wider scope uses."""
    number = min(_redis_databases, key=_redis_users.__getitem__)  # the first of those with the fewest users
    _redis_databases.remove(number)
    _redis_databases.append(number)
    _redis_users[number] += 1
    return number


def _redis_url(services: Settings, database: int) -> str:
    url = urlsplit(services.require_redis())
    is_socket = url.scheme == "unix"
    return (url._replace(query=f"db={database}") if is_socket else url._replace(path=f"/{database}")).geturl()


def _empty_redis(url: str) -> None:
    import redis

    with redis.Redis.from_url(url) as client:
        client.flushdb()
