"""The Celery app and the queues, each setting with its reason (docs/reliability.md D3, D6, D7).

A Celery message is only a notification: it holds a shard's id, and Postgres decides whether there is work to do.
Start a worker with `celery -A workers.app worker -Q query -n answer@%h --pool prefork --concurrency 1`.
"""

from __future__ import annotations

import logging
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from celery import Celery, signals
from kombu import Exchange, Queue
from kombu.exceptions import OperationalError
from kombu.pools import producers
from kombu.transport import TRANSPORT_ALIASES
from sqlalchemy import Engine

from ragllava.errors import ServiceUnavailable
from ragllava.jobs import dispatch
from ragllava.jobs.dispatch import Publish, ShardMessage
from ragllava.logs import configure_logging
from ragllava.records import Priority
from ragllava.settings import Settings, load_settings
from ragllava.stores.database import in_transaction

log = logging.getLogger(__name__)

QUEUES = {
    "ingest": "embeds pictures",
    "query": "retrieves, reranks and answers",
    "train": "trains adapters from labelled questions, and evaluates them",
    "maint": "reaps, dispatches, takes submissions; never long work",
}
TASK_OF_QUEUE = {"ingest": "ragllava.ingest", "query": "ragllava.answer", "train": "ragllava.train"}

MESSAGE_VERSION = 1
TICK, DISPATCH = "ragllava.tick", "ragllava.dispatch"  # names of tasks

# By the scheme of the address, so that `rediss://` keeps its meaning.
TRANSPORT_ALIASES.update(dict.fromkeys(("redis", "rediss"), "workers.transport:Transport"))

app = Celery("ragllava", include=["workers.tasks", "workers.schedule", "workers.events"])


def configuration() -> dict[str, Any]:
    """Celery's settings, read when a worker or a publisher first needs them, never at import."""
    settings = load_settings()
    return {
        # Publishers give their own address (`publisher`); a worker without one is refused in workers/presence.py.
        "broker_url": broker_url(settings) if settings.redis_url else None,
        "broker_connection_retry_on_startup": True,
        # Without a socket timeout a worker whose peer vanished never receives another message
        # (docs/reliability.md D6).
        "broker_transport_options": {
            "socket_timeout": 5,
            "socket_connect_timeout": 3,
            "socket_keepalive": True,
            "health_check_interval": 5,
            "visibility_timeout": 3600,
            "global_keyprefix": "ragllava:",
        },
        # The default exchange needs no binding in Redis, so an emptied Redis routes again at once.
        "task_queues": [Queue(name, Exchange(""), routing_key=name) for name in QUEUES],
        "task_default_queue": "maint",
        "task_default_exchange": "",
        "task_default_routing_key": "maint",
        "task_create_missing_queues": False,
        "task_routes": {name: {"queue": queue} for queue, name in TASK_OF_QUEUE.items()},
        # Early ack: reaping finds a lost message; a late ack could run a shard twice or lose it
        # (docs/reliability.md D6).
        "task_acks_late": False,
        "task_ignore_result": True,
        "task_publish_retry": False,
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": True,
        "worker_enable_remote_control": False,
        "worker_send_task_events": False,
        "task_serializer": "json",
        "accept_content": ["json"],
        # CUDA does not work in a forked process, and a child that loads a model takes long to start
        # (docs/reliability.md D7).
        "worker_pool_start_method": "spawn",
        "worker_proc_alive_timeout": 600,
        "task_time_limit": settings.shard_time_limit_s,
        "task_annotations": {"ragllava.train": {"time_limit": settings.train_time_limit_s}},
        "worker_max_memory_per_child": settings.worker_memory_mib * 1024 or None,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
    }


app.add_defaults(configuration)


@signals.setup_logging.connect
def _setup_logging(**_facts: Any) -> None:
    configure_logging()


def broker_url(settings: Settings) -> str:
    """The address of the queue in Celery's form, which differs for a Unix socket. Raises SettingsError without one."""
    url = urlsplit(settings.require_redis())
    if url.scheme != "unix":
        return url.geturl()
    query = dict(parse_qsl(url.query))
    user, password = query.pop("username", unquote(url.username or "")), query.pop("password", None)
    # A password is where Celery hides it from its log.
    login = url.netloc if password is None else f"{quote(user, safe='')}:{quote(password, safe='')}@"
    renamed = urlencode([("virtual_host" if name == "db" else name, value) for name, value in query.items()])
    return f"redis+socket://{login}{url.path}?{renamed}"


def publisher(engine: Engine, settings: Settings) -> Publish:
    """A function that sends shard messages; shards whose message cannot be sent become pending again at once.

    Its connections to the broker stay open in this process for the next messages: opening one takes several exchanges.
    """

    def publish(messages: list[ShardMessage]) -> None:
        unsent = list(messages)
        try:
            with producers[app.connection_for_write(broker_url(settings))].acquire(block=True) as producer:
                while unsent:
                    app.send_task(
                        TASK_OF_QUEUE[unsent[0].queue],
                        args=[unsent[0].shard_id, MESSAGE_VERSION],
                        queue=unsent[0].queue,
                        priority=broker_priority(unsent[0].priority),
                        producer=producer,
                    )
                    unsent.pop(0)
        except (OperationalError, OSError) as error:
            log.warning(
                f"the queue cannot be reached ({error}); the next tick of the maintenance worker sends the messages",
                extra={"action": "publish_failed", "messages": len(unsent)},
            )
            ids = [message.shard_id for message in unsent]
            in_transaction(engine, dispatch.unpublish, ids)

    return publish


def broker_priority(priority: int) -> int:
    """The priority of a message: the Redis transport keeps a list for each of 0, 3, 6 and 9, and serves 0 first."""
    if priority >= Priority.URGENT:
        return 0
    if priority > Priority.NORMAL:
        return 3
    return 6 if priority == Priority.NORMAL else 9


def waiting_messages(settings: Settings) -> dict[str, int]:
    """How many messages wait in each queue, of all priorities. Raises ServiceUnavailable."""
    with app.connection_for_read(broker_url(settings)) as connection:
        try:
            # Declaring a queue changes nothing in Redis. A passive declaration would ignore our key prefix.
            channel = connection.default_channel
            return {name: channel.queue_declare(name).message_count for name in QUEUES}
        except (OperationalError, *connection.connection_errors) as error:
            raise ServiceUnavailable(f"the queue cannot be reached ({error})") from error


def dispatch_now(engine: Engine, settings: Settings) -> int:
    """Reap, choose, commit, publish; called by every submitter and after every shard. Returns the messages sent."""
    return dispatch.reap_and_dispatch(engine, settings, publisher(engine, settings))


def request_work(settings: Settings, task: str) -> None:
    """Ask a maintenance worker to dispatch (DISPATCH) or to tick (TICK) now; without the queue, its next tick does."""
    try:
        with producers[app.connection_for_write(broker_url(settings))].acquire(block=True) as producer:
            app.send_task(task, queue="maint", producer=producer)
    except (OperationalError, OSError) as error:
        log.warning(f"the queue cannot be reached ({error}); the next tick is due", extra={"action": "no_tick"})


# Registers its signal handlers; at the end, because it needs `app` and `dispatch_now`.
from workers import presence  # noqa: E402, F401
