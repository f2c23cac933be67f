"""Observe the objects of a bucket: what each is now, beside what is recorded of it."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

from sqlalchemy import Engine

from ragllava.errors import FetchNeeded, ObjectMissing, ObjectRefused, RagllavaError
from ragllava.jobs.isolation import reason_of
from ragllava.settings import Settings
from ragllava.stages.buckets.apply_changes import Observation
from ragllava.stages.buckets.inbox import submit_question_file
from ragllava.stages.buckets.object_captions import kind_of, metadata_caption, read_sidecar
from ragllava.stores.buckets import bound_objects
from ragllava.stores.buckets.bindings import Binding, BindingRole
from ragllava.stores.buckets.bound_objects import BoundObject, ObjectKind, ObjectState
from ragllava.stores.buckets.listings import ListedObject
from ragllava.stores.database import in_transaction
from ragllava.stores.objects import ObjectStore

log = logging.getLogger(__name__)

_THREADS = 16
_MAX_FAILURES = 20  # objects that could not be observed, before the store is considered unavailable


@dataclass(slots=True)
class _Attempts:
    """Attempts to observe objects: why some failed, which were left, and how many succeeded."""

    failed: dict[str, str] = field(default_factory=dict)
    slow: list[str] = field(default_factory=list)
    succeeded: int = 0

    def run(self, key: str, step: Callable[[], Observation]) -> Observation | None:
        """The result of a step, None when it failed or was left. Many failures mean that the store is unavailable."""
        if len(self.failed) >= max(_MAX_FAILURES, 10 * self.succeeded):
            self.failed[key] = "the object store does not answer"
            return None
        try:
            observation = step()
        except FetchNeeded:
            self.slow.append(key)
            return None
        except Exception as error:
            self.failed[key] = reason_of(error)
            if not isinstance(error, RagllavaError):
                log.error(reason_of(error), exc_info=error, extra={"action": "object_not_observed", "key": key})
            return None
        self.succeeded += 1
        return observation


def observe_objects(
    engine: Engine,
    settings: Settings,
    objects: ObjectStore,
    binding: Binding,
    keys: Sequence[str],
    listed: Mapping[str, ListedObject] | None = None,
) -> tuple[list[Observation], dict[str, str], list[str]]:
    """Observe objects, several at a time; returns the observations, the reasons for objects where that failed, and,
    inside `fetching_nothing`, the question files that were left because a picture of another host has to be fetched.

    `listed` has what a listing says about them. Raises ObjectMissing when the whole bucket is missing: that must not
    retire a whole archive.
    """
    recorded = in_transaction(engine, bound_objects.load_objects, binding.binding_id, keys)
    attempts = _Attempts()

    def observe(key: str) -> Observation | None:
        before = recorded.get(key)
        return attempts.run(key, lambda: _observe_object(objects, binding, before, key, listed))

    # In any order: objects that cannot be observed must not come before all others, time after time.
    shuffled = random.sample(keys, len(keys))
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="observe") as threads:
        observed = {o.key: o for o in threads.map(observe, shuffled) if o is not None}
    observations = [observed[key] for key in keys if key in observed]
    if any(observation.now is None for observation in observations) and not objects.bucket_exists(binding.bucket):
        raise ObjectMissing(f"there is no bucket {binding.bucket} any more; its archive is not changed")
    if binding.role is BindingRole.INBOX:
        submitted = (
            attempts.run(o.key, partial(_submit_questions, engine, settings, objects, binding, o)) for o in observations
        )
        observations = [observation for observation in submitted if observation is not None]
    return observations, attempts.failed, attempts.slow


def _observe_object(
    objects: ObjectStore,
    binding: Binding,
    before: BoundObject | None,
    key: str,
    listed: Mapping[str, ListedObject] | None,
) -> Observation:
    try:
        info = objects.stat_external(binding.bucket, key)
    except ObjectMissing:
        return Observation(key, before, None)
    except ObjectRefused as error:
        return _refused(before, key, listed, str(error))
    now = ObjectState(key, kind_of(binding, key), info.etag, info.size_bytes)
    if now.kind is ObjectKind.PICTURE:
        now = replace(now, caption=metadata_caption(info.metadata))
    elif now.kind is ObjectKind.CAPTION:
        was_read = before is not None and before.kind is ObjectKind.CAPTION
        if was_read and before is not None and not Observation(key, before, now).has_new_bytes:
            now = replace(now, caption=before.caption, metadata=before.metadata)
        else:
            try:
                said = read_sidecar(objects, binding.bucket, key)
                now = replace(now, caption=said.caption, metadata=said.metadata)
            except ObjectMissing:
                return Observation(key, before, None)
    return Observation(key, before, now)


def _refused(
    before: BoundObject | None, key: str, listed: Mapping[str, ListedObject] | None, reason: str
) -> Observation:
    """Of an object that the store never gives, only what a listing says is known; without one, nothing is new."""
    log.warning(reason, extra={"action": "object_refused", "key": key})
    if listed is None:
        return Observation(key, before, before)
    if key not in listed:
        return Observation(key, before, None)
    entry = listed[key]
    return Observation(key, before, ObjectState(key, ObjectKind.OTHER, entry.etag, entry.size_bytes, reason=reason))


def _submit_questions(
    engine: Engine, settings: Settings, objects: ObjectStore, binding: Binding, observation: Observation
) -> Observation:
    now = observation.now
    if now is None or now.kind is not ObjectKind.QUESTIONS or not observation.has_new_bytes:
        return observation
    result = submit_question_file(engine, settings, objects, binding, observation.key, now.etag)
    return replace(observation, now=replace(now, job_id=result.job_id, reason=result.reason))
