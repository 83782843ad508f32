"""The messages of the sandbox: what is sent and received, and what the other side must know of it."""

import base64
import secrets
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, Final

from pydantic import SecretStr

from receiver.domain.events import Api, Direction
from receiver.sandbox import v1, v1_requests, v2_requests
from receiver.sandbox.callback_sender import Caller
from receiver.sandbox.expected import Truth, truths
from receiver.sandbox.faults import Rates
from receiver.sandbox.messages import Destination, InboundRequest, Message, instant
from receiver.sandbox.scenario import write, write_inbound
from receiver.sandbox.segments import segment_count
from receiver.sandbox.settings import SandboxSettings
from receiver.sandbox.timeline import Clock, Kind, Outcome, Post, Script, Sending

# rejected-unallocated-from-number
_NOT_YOURS: Final = Outcome(Kind.FAILED, 4405)
_V1_APPLICATION: Final = "a-sandbox"
# the one of Bandwidth's samples
_V2_APPLICATION: Final = "93de2206-9669-4e07-948d-329f4b722ee2"


class World:
    """Keeps the newest messages, at most `max_messages`; of those that are forgotten nothing more is posted."""

    def __init__(self, settings: SandboxSettings, clock: Clock, caller: Caller) -> None:
        self.settings = settings
        self.clock = clock
        self.caller = caller
        self.rates = settings.rates
        self._seed = settings.seed
        self._ordinal = 0
        self._messages: dict[str, Message] = {}
        self._free_at: dict[str, datetime] = {}

    def send_v1(self, user: str, request: v1_requests.MessageRequest, base_url: str) -> Message:
        """Takes a v1 message; raises Refusal for a number that is not the user's or sends too fast."""
        if self.settings.numbers and request.from_ not in self.settings.numbers:
            raise v1_requests.not_yours(user, request.from_)
        now = self.clock.now()
        self._slow_down(request.from_, now)
        ordinal, message_id = self._next_ordinal(), _v1_id()
        sending = Sending(
            api=Api.V1, recipients=(request.to,), is_mms=bool(request.media), receipts=request.receipt_requested
        )
        return self._keep(
            Message(
                api=Api.V1,
                id=message_id,
                ordinal=ordinal,
                user=user,
                direction=Direction.OUT,
                sender=request.from_,
                recipients=(request.to,),
                owner=request.from_,
                created_at=now,
                script=write(sending, self.rates, seed=self._seed, ordinal=ordinal),
                destination=request.destination,
                uri=base_url + v1.path(user, message_id),
                text=request.text,
                media=request.media,
                segment_count=_segments(request.text, is_mms=sending.is_mms),
                tag=request.tag,
                receipts=request.receipt_requested,
            )
        )

    def send_v2(self, user: str, request: v2_requests.MessageRequest) -> Message:
        """Takes a v2 message; raises Refusal for an application that is not the user's."""
        settings = self.settings
        if settings.application_ids and request.application_id not in settings.application_ids:
            raise v2_requests.not_yours(request.application_id)
        stranger = settings.numbers and request.from_ not in settings.numbers
        now, ordinal = self.clock.now(), self._next_ordinal()
        sending = Sending(
            api=Api.V2,
            recipients=request.to,
            is_mms=bool(request.media) or len(request.to) > 1,
            mms_receipts=settings.mms_receipts,
            sent_events=settings.sent_events,
        )
        script = write(sending, self.rates, seed=self._seed, ordinal=ordinal, outcome=_NOT_YOURS if stranger else None)
        return self._keep(
            Message(
                api=Api.V2,
                id=_v2_id(now),
                ordinal=ordinal,
                user=user,
                direction=Direction.OUT,
                sender=request.from_,
                recipients=request.to,
                owner=request.from_,
                created_at=now,
                script=_requested(script, settings.callback_types),
                destination=Destination(url=_revealed(settings.outbound_url), seconds=settings.callback_timeout),
                text=request.text,
                media=request.media,
                segment_count=_segments(request.text, is_mms=sending.is_mms),
                application_id=request.application_id,
                tag=request.tag,
                priority=request.priority,
                expiration=instant(request.expiration, "milliseconds") if request.expiration else None,
            )
        )

    def receive(self, request: InboundRequest, base_url: str) -> list[Message]:
        """Takes an inbound message: each of our numbers gets a copy with an id of its own."""
        return [self._keep(self._copy(request, owner, base_url)) for owner in request.to]

    def get(self, api: Api, user: str, message_id: str) -> Message | None:
        """A message of a user."""
        message = self._messages.get(message_id)
        return message if message and (message.api, message.user) == (api, user) else None

    def messages(self, api: Api, user: str) -> Iterable[Message]:
        """The messages of a user, oldest first."""
        return [message for message in self._messages.values() if (message.api, message.user) == (api, user)]

    def truth(self, message_id: str | None = None) -> list[Truth]:
        """What the other side must know of every delivery, or of those of one message."""
        if message_id is None:
            return [truth for message in self._messages.values() for truth in truths(message)]
        message = self._messages.get(message_id)
        return list(truths(message)) if message else []

    def change_rates(self, changes: dict[str, Any]) -> Rates:
        """Sets some rates anew, for messages from now on; raises ValidationError for impossible ones."""
        self.rates = Rates.model_validate({**self.rates.model_dump(by_alias=True), **changes})
        return self.rates

    def reset(self, seed: int | None = None) -> None:
        """Forgets everything; the next message is the first again."""
        for message in self._messages.values():
            message.forgotten = True
        self.caller.clear()
        self.clock.reset()
        self.rates = self.settings.rates
        self._seed = self.settings.seed if seed is None else seed
        self._ordinal = 0
        self._messages.clear()
        self._free_at.clear()

    def _copy(self, request: InboundRequest, owner: str, base_url: str) -> Message:
        settings, now, ordinal = self.settings, self.clock.now(), self._next_ordinal()
        is_v1 = request.api is Api.V1
        message_id = _v1_id() if is_v1 else _v2_id(now)
        user = request.user or (settings.users[0] if settings.users else "sandbox")
        return Message(
            api=request.api,
            id=message_id,
            ordinal=ordinal,
            user=user,
            direction=Direction.IN,
            sender=request.from_,
            recipients=(*request.to, *request.others),
            owner=owner,
            created_at=now,
            script=write_inbound(request.api, owner, request.from_, self.rates, seed=self._seed, ordinal=ordinal),
            destination=self._inbound_destination(request.api),
            uri=base_url + v1.path(user, message_id),
            text=request.text,
            media=request.media,
            segment_count=_segments(request.text or "", is_mms=request.is_mms),
            application_id=request.application_id or (_V1_APPLICATION if is_v1 else self._application_id()),
            channel=request.channel,
            carrier_name=request.carrier_name,
            event=request.event,
            reply=request.reply,
        )

    def _inbound_destination(self, api: Api) -> Destination:
        settings = self.settings
        if api is Api.V2:
            return Destination(
                url=_revealed(settings.inbound_url or settings.outbound_url), seconds=settings.callback_timeout
            )
        return Destination(
            url=_revealed(settings.v1_inbound_url),
            fallback=_revealed(settings.v1_inbound_fallback_url),
            method=settings.v1_inbound_method,
            seconds=settings.v1_inbound_timeout / 1000,
        )

    def _application_id(self) -> str:
        return self.settings.application_ids[0] if self.settings.application_ids else _V2_APPLICATION

    def _next_ordinal(self) -> int:
        self._ordinal += 1
        return self._ordinal

    def _keep(self, message: Message) -> Message:
        self._messages[message.id] = message
        if len(self._messages) > self.settings.max_messages:
            self.caller.forget(self._messages.pop(next(iter(self._messages))))
        self.caller.schedule(message)
        return message

    def _slow_down(self, number: str, now: datetime) -> None:
        """Raises Refusal for a number that sends too fast."""
        per_second = self.settings.messages_per_second
        if not per_second:
            return
        free_at = self._free_at.get(number)
        if free_at and now < free_at:
            raise v1_requests.too_fast(number, per_second, free_at)
        self._free_at[number] = now + timedelta(seconds=1 / per_second)
        if len(self._free_at) > self.settings.max_messages:
            self._free_at = {each: free_at for each, free_at in self._free_at.items() if free_at > now}


def _requested(script: Script, callback_types: frozenset[str]) -> Script:
    """The script without callbacks of types that the application did not ask for."""
    posts = (
        Post(post.after, tuple(step for step in post.steps if _is_requested(step.kind, callback_types)))
        for post in script.posts
    )
    return Script(script.steps, tuple(post for post in posts if post.steps))


def _is_requested(kind: Kind, callback_types: frozenset[str]) -> bool:
    return kind is Kind.UNFAMILIAR or f"message-{kind}" in callback_types


def _segments(text: str, *, is_mms: bool) -> int:
    return 1 if is_mms else segment_count(text)


def _revealed(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret else None


def _v1_id() -> str:
    return f"m-{_letters(15)[:23]}"


def _v2_id(now: datetime) -> str:
    return f"{int(now.timestamp() * 1000):013}{_letters(10)}"


def _letters(count: int) -> str:
    """Lower-case base32 of so many random bytes. Not of the seed: the same id twice would be the same message."""
    return base64.b32encode(secrets.token_bytes(count)).decode("ascii").lower()
