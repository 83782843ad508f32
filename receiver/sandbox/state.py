"""The state of a sandbox: its messages, rates and clock."""

import base64
import secrets
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, Final

from pydantic import SecretStr

from receiver.domain.events import Api, Direction
from receiver.sandbox import v1, v1_requests, v2_requests
from receiver.sandbox.callback_sender import CallbackSender, Clock
from receiver.sandbox.messages import (
    CallbackTarget,
    ExpectedStatus,
    InboundRequest,
    SandboxMessage,
    expected_statuses,
    segment_count,
    timestamp,
)
from receiver.sandbox.scenario import FinalStatus, Kind, PlannedCallback, Scenario, Sending
from receiver.sandbox.scenario_writer import media_final_status, write_inbound_scenario, write_scenario
from receiver.sandbox.settings import Rates, SandboxSettings

# rejected-unallocated-from-number
_UNALLOCATED_SENDER: Final = FinalStatus(Kind.FAILED, 4405)
_V1_APPLICATION_ID: Final = "a-sandbox"
# The id in Bandwidth's samples.
_V2_APPLICATION_ID: Final = "93de2206-9669-4e07-948d-329f4b722ee2"


class State:
    """Stores the newest `max_messages` messages. Evicting a message cancels its callbacks."""

    def __init__(self, settings: SandboxSettings, clock: Clock, callback_sender: CallbackSender) -> None:
        self.settings = settings
        self.clock = clock
        self.callback_sender = callback_sender
        self.rates = settings.rates
        self._seed = settings.seed
        self._ordinal = 0
        self._messages: dict[str, SandboxMessage] = {}
        self._free_at: dict[str, datetime] = {}

    def send_v1(self, user: str, request: v1_requests.MessageRequest, base_url: str) -> SandboxMessage:
        """Accepts a v1 message. Raises V1Error for a sender that is not the user's or exceeds its rate limit."""
        if self.settings.numbers and request.from_ not in self.settings.numbers:
            raise v1_requests.number_access_denied(user, request.from_)
        now = self.clock.now()
        self._check_rate_limit(request.from_, now)
        ordinal, message_id = self._next_ordinal(), _v1_id()
        sending = Sending(
            api=Api.V1, recipients=(request.to,), is_mms=bool(request.media), receipts=request.receipt_requested
        )
        return self._store(
            SandboxMessage(
                api=Api.V1,
                id=message_id,
                ordinal=ordinal,
                user=user,
                direction=Direction.OUT,
                sender=request.from_,
                recipients=(request.to,),
                owner=request.from_,
                created_at=now,
                scenario=write_scenario(
                    sending,
                    self.rates,
                    seed=self._seed,
                    ordinal=ordinal,
                    final_status=media_final_status(Api.V1, request.media),
                ),
                target=request.target,
                uri=base_url + v1.path(user, message_id),
                text=request.text,
                media=request.media,
                segment_count=_segment_count(request.text, is_mms=sending.is_mms),
                tag=request.tag,
                receipts=request.receipt_requested,
            )
        )

    def send_v2(self, user: str, request: v2_requests.MessageRequest) -> SandboxMessage:
        """Accepts a v2 message. Raises V2Error for an application that is not the user's.

        As at Bandwidth, a sender that is not the user's is accepted, and fails later.
        """
        settings = self.settings
        if settings.application_ids and request.application_id not in settings.application_ids:
            raise v2_requests.unknown_application(request.application_id)
        is_unallocated = bool(settings.numbers) and request.from_ not in settings.numbers
        now, ordinal = self.clock.now(), self._next_ordinal()
        sending = Sending(
            api=Api.V2,
            recipients=request.to,
            is_mms=bool(request.media) or len(request.to) > 1,
            mms_receipts=settings.mms_receipts,
            sent_events=settings.sent_events,
        )
        scenario = write_scenario(
            sending,
            self.rates,
            seed=self._seed,
            ordinal=ordinal,
            final_status=_UNALLOCATED_SENDER if is_unallocated else media_final_status(Api.V2, request.media),
        )
        return self._store(
            SandboxMessage(
                api=Api.V2,
                id=_v2_id(now),
                ordinal=ordinal,
                user=user,
                direction=Direction.OUT,
                sender=request.from_,
                recipients=request.to,
                owner=request.from_,
                created_at=now,
                scenario=_with_callback_types(scenario, settings.callback_types),
                target=CallbackTarget(url=_plain(settings.outbound_url), timeout=settings.callback_timeout),
                text=request.text,
                media=request.media,
                segment_count=_segment_count(request.text, is_mms=sending.is_mms),
                application_id=request.application_id,
                tag=request.tag,
                priority=request.priority,
                expiration=timestamp(request.expiration, "milliseconds") if request.expiration else None,
            )
        )

    def receive(self, request: InboundRequest, base_url: str) -> list[SandboxMessage]:
        """Simulates an inbound message. Each of the user's numbers gets a copy with its own id."""
        return [self._store(self._inbound_copy(request, owner, base_url)) for owner in request.to]

    def get(self, api: Api, user: str, message_id: str) -> SandboxMessage | None:
        """Returns a message of a user, None if there is none."""
        message = self._messages.get(message_id)
        return message if message and (message.api, message.user) == (api, user) else None

    def messages(self, api: Api, user: str) -> Iterable[SandboxMessage]:
        """Returns the messages of a user, oldest first."""
        return [message for message in self._messages.values() if (message.api, message.user) == (api, user)]

    def sent(self) -> Iterable[SandboxMessage]:
        """Returns the messages that were sent by the API, of all users, oldest first."""
        return [message for message in self._messages.values() if message.direction is Direction.OUT]

    def expected(self, message_id: str | None = None) -> list[ExpectedStatus]:
        """Returns the expected status of every delivery, or of the deliveries of one message."""
        if message_id is None:
            return [expected for message in self._messages.values() for expected in expected_statuses(message)]
        message = self._messages.get(message_id)
        return list(expected_statuses(message)) if message else []

    def change_rates(self, changes: dict[str, Any]) -> Rates:
        """Changes some rates, for messages from now on. Raises ValidationError for an unknown name or invalid rate."""
        self.rates = Rates.model_validate({**self.rates.model_dump(by_alias=True), **changes})
        return self.rates

    def reset(self, seed: int | None = None) -> None:
        """Deletes every message; clock and rates are as at the start, and ordinals begin at 1."""
        for message in self._messages.values():
            message.is_evicted = True
        self.callback_sender.clear()
        self.clock.reset()
        self.rates = self.settings.rates
        self._seed = self.settings.seed if seed is None else seed
        self._ordinal = 0
        self._messages.clear()
        self._free_at.clear()

    def _inbound_copy(self, request: InboundRequest, owner: str, base_url: str) -> SandboxMessage:
        settings, now, ordinal = self.settings, self.clock.now(), self._next_ordinal()
        is_v1 = request.api is Api.V1
        scenario = write_inbound_scenario(
            request.api, owner, request.from_, self.rates, seed=self._seed, ordinal=ordinal
        )
        message_id = _v1_id() if is_v1 else _v2_id(now)
        user = request.user or (settings.users[0] if settings.users else "sandbox")
        return SandboxMessage(
            api=request.api,
            id=message_id,
            ordinal=ordinal,
            user=user,
            direction=Direction.IN,
            sender=request.from_,
            recipients=(*request.to, *request.others),
            owner=owner,
            created_at=now,
            scenario=scenario,
            target=self._inbound_target(request.api),
            uri=base_url + v1.path(user, message_id),
            text=request.text,
            media=request.media,
            segment_count=_segment_count(request.text or "", is_mms=request.is_mms),
            application_id=request.application_id or (_V1_APPLICATION_ID if is_v1 else self._application_id()),
            channel=request.channel,
            carrier_name=request.carrier_name,
            event=request.event,
            reply=request.reply,
        )

    def _inbound_target(self, api: Api) -> CallbackTarget:
        settings = self.settings
        if api is Api.V2:
            return CallbackTarget(
                url=_plain(settings.inbound_url or settings.outbound_url), timeout=settings.callback_timeout
            )
        return CallbackTarget(
            url=_plain(settings.v1_inbound_url),
            fallback_url=_plain(settings.v1_inbound_fallback_url),
            method=settings.v1_inbound_method,
            timeout=settings.v1_inbound_timeout / 1000,
        )

    def _application_id(self) -> str:
        return self.settings.application_ids[0] if self.settings.application_ids else _V2_APPLICATION_ID

    def _next_ordinal(self) -> int:
        self._ordinal += 1
        return self._ordinal

    def _store(self, message: SandboxMessage) -> SandboxMessage:
        self._messages[message.id] = message
        if len(self._messages) > self.settings.max_messages:
            self.callback_sender.evict(self._messages.pop(next(iter(self._messages))))
        self.callback_sender.schedule(message)
        return message

    def _check_rate_limit(self, number: str, now: datetime) -> None:
        """Raises V1Error if the number exceeds its rate limit."""
        per_second = self.settings.messages_per_second
        if not per_second:
            return
        free_at = self._free_at.get(number)
        if free_at and now < free_at:
            raise v1_requests.rate_limited(number, per_second, free_at)
        self._free_at[number] = now + timedelta(seconds=1 / per_second)
        if len(self._free_at) > self.settings.max_messages:
            self._free_at = {sender: free_at for sender, free_at in self._free_at.items() if free_at > now}


def _with_callback_types(scenario: Scenario, callback_types: frozenset[str]) -> Scenario:
    """Returns the scenario without the callbacks of types that the application did not request."""
    callbacks = (
        PlannedCallback(
            callback.after, tuple(step for step in callback.steps if _is_requested(step.kind, callback_types))
        )
        for callback in scenario.callbacks
    )
    return Scenario(scenario.steps, tuple(callback for callback in callbacks if callback.steps))


def _is_requested(kind: Kind, callback_types: frozenset[str]) -> bool:
    return kind is Kind.UNKNOWN_TYPE or f"message-{kind}" in callback_types


def _segment_count(text: str, *, is_mms: bool) -> int:
    return 1 if is_mms else segment_count(text)


def _plain(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret else None


def _v1_id() -> str:
    return f"m-{_random_letters(15)[:23]}"


def _v2_id(now: datetime) -> str:
    return f"{int(now.timestamp() * 1000):013}{_random_letters(10)}"


def _random_letters(byte_count: int) -> str:
    """Returns random bytes in lower-case base32.

    They do not depend on the seed: after a restart with the same seed, the same ids would be the same messages.
    """
    return base64.b32encode(secrets.token_bytes(byte_count)).decode("ascii").lower()
