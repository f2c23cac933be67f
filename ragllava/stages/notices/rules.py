"""Who is told of what: the rules of RAGLLAVA_NOTIFY_RULES."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ragllava.errors import SettingsError
from ragllava.jobs.states import JobState
from ragllava.settings import Settings
from ragllava.stages.notices.mail import mail_server
from ragllava.stages.webhooks.deliver import is_secret
from ragllava.stores.maintenance.notices import Notice, NoticeEvent

JOB_FAILED = "job_failed"  # of the ends of jobs those that a person should look at
_RULE = re.compile(r"(?P<event>[a-z_]+)(?::(?P<archive>[^=]+))?=(?P<target>(?:mailto:|https?://).+)")
_MAIL = re.compile(r"mailto:[^\s,;<>@\"]+@[^\s,;<>@\"]+")
_EVENTS = (*NoticeEvent, JOB_FAILED)


@dataclass(frozen=True, slots=True)
class Rule:
    """Tell `target` of an event; `archive` None: of all archives."""

    event: str
    archive: str | None
    target: str

    def fits(self, notice: Notice) -> bool:
        """Whether the target is told of a notice."""
        if self.archive is not None and self.archive != notice.archive:
            return False
        if self.event == JOB_FAILED:
            bad = (JobState.FAILED, JobState.COMPLETED_WITH_ERRORS)
            return notice.event is NoticeEvent.JOB_ENDED and notice.facts.get("state") in bad
        return notice.event == self.event


def parse_rules(settings: Settings) -> list[Rule]:
    """The rules of the settings. Raises SettingsError for one that cannot be read or kept, and for a mail server or a
    secret by which nothing could be sent, whatever the rules are: mailings of earlier rules may wait."""
    mail_server(settings)
    if settings.notify_secret is not None and not is_secret(settings.notify_secret.get_secret_value()):
        raise SettingsError("RAGLLAVA_NOTIFY_SECRET is not base64; write whsec_ and base64")
    parts = [part.strip() for part in re.split(r"[,\n]", settings.notify_rules) if part.strip()]
    return [_parse(part, settings) for part in parts]


def _parse(part: str, settings: Settings) -> Rule:
    match = _RULE.fullmatch(part)
    if match is None or match["event"] not in _EVENTS:
        raise SettingsError(
            f"RAGLLAVA_NOTIFY_RULES: {part[:80]!r} is no rule; write event=mailto:address or event:archive=https://…, "
            f"with one of the events {', '.join(_EVENTS)}"
        )
    target = match["target"]
    if target.startswith("mailto:"):
        if not _MAIL.fullmatch(target):
            raise SettingsError(f"RAGLLAVA_NOTIFY_RULES: {target[:80]!r} is no mail address")
        if settings.smtp_host is None or settings.smtp_sender is None:
            raise SettingsError("RAGLLAVA_NOTIFY_RULES: mails need RAGLLAVA_SMTP_HOST and RAGLLAVA_SMTP_SENDER")
    elif settings.notify_secret is None:
        raise SettingsError("RAGLLAVA_NOTIFY_RULES: webhooks need RAGLLAVA_NOTIFY_SECRET, by which they are signed")
    return Rule(match["event"], match["archive"], target)
