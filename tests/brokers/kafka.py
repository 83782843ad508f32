"""A Kafka cluster: the mock one of librdkafka, which speaks the protocol and fails on request."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, TopicPartition

from tests.brokers.own import freeze

PRODUCE, METADATA, INIT_PRODUCER_ID = 0, 3, 22
"""Keys of Kafka's requests, for `push_errors`; its error codes are in `confluent_kafka.KafkaError`."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a topic, as a consumer reads it."""

    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes | None]
    partition: int
    offset: int


class KafkaCluster:
    """Brokers with the ids 1, 2, … in another process. They run inside `with`.

    A broker that is down keeps its port and its data. A killed cluster loses both.
    """

    def __init__(self, brokers: int = 1) -> None:
        self.bootstrap = ""
        self._brokers = range(1, brokers + 1)

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("mock_kafka.py"), str(len(self._brokers))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            self.bootstrap = self._answer()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def create_topic(self, name: str, partitions: int = 4) -> None:
        self._must("topic_create", name, partitions, len(self._brokers))

    def set_topic_error(self, name: str, code: int) -> None:
        """Sets the error of a topic in all metadata responses; 0 clears it."""
        self._call("topic_set_error", name, code)

    def down(self, *brokers: int) -> None:
        """Stops these brokers, or all: they close their connections and refuse new connections."""
        for broker in brokers or self._brokers:
            self._must("broker_set_down", broker)

    def up(self, *brokers: int) -> None:
        """Starts these brokers again, or all."""
        for broker in brokers or self._brokers:
            self._must("broker_set_up", broker)

    def advertise(self, port: int, broker: int = 1) -> None:
        """Advertises another port for a broker, such as that of a proxy, to all clients, `records` included."""
        self._must("broker_set_host_port", broker, "127.0.0.1", port)

    def slow(self, milliseconds: int) -> None:
        """Delays every response of every broker by this time."""
        for broker in self._brokers:
            self._must("broker_set_rtt", broker, milliseconds)

    def push_errors(self, request: int, codes: list[int]) -> None:
        """Answers the next requests of a kind with these errors, one each."""
        self._call("push_request_errors_array", request, codes)

    def clear_errors(self, request: int) -> None:
        """Discards the errors that were not returned yet."""
        self._call("clear_request_errors", request)

    def freeze(self) -> None:
        """Freezes the process: its ports accept connections and never answer."""
        freeze(self._process)

    def thaw(self) -> None:
        """Continues a frozen process."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kills the cluster for good."""
        self._process.kill()
        self._process.communicate(timeout=30)

    def records(self, topic: str, seconds: float = 45) -> list[Record]:
        """All records of a topic, by partition and offset."""
        settings = {"bootstrap.servers": self.bootstrap, "group.id": "records", "enable.partition.eof": True}
        settings |= {"fetch.wait.max.ms": 10, "enable.auto.commit": False, "log_level": 3}
        consumer = Consumer(settings)
        try:
            return _read(consumer, topic, time.monotonic() + seconds)
        finally:
            consumer.close()

    def _must(self, name: str, *arguments: int | str | list[int]) -> None:
        """Calls a function that returns an error code, and raises the error."""
        code = self._call(name, *arguments)
        if code:
            raise AssertionError(f"{name}{arguments}: {KafkaError(code)}")

    def _call(self, name: str, *arguments: int | str | list[int]) -> Any:
        if self._process.stdin is None:
            raise AssertionError("the cluster was not started with a pipe")
        self._process.stdin.write(json.dumps([name, *arguments]).encode() + b"\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        line = self._process.stdout.readline() if self._process.stdout else b""
        if not line:
            raise AssertionError("the mock cluster has ended; its last words are above")
        return json.loads(line)


def _read(consumer: Consumer, topic: str, deadline: float) -> list[Record]:
    partitions = consumer.list_topics(topic, timeout=45).topics[topic].partitions
    consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in partitions])
    unread, found = set(partitions), []
    while unread:
        if time.monotonic() > deadline:
            raise AssertionError(f"{topic} could not be read to its end")
        message = consumer.poll(0.1)
        if message is None:
            continue
        error = message.error()
        if error is None:
            found.append(_record(message))
        elif error.code() == KafkaError._PARTITION_EOF:
            unread.discard(message.partition())
    return sorted(found, key=lambda record: (record.partition, record.offset))


def _record(message: Message) -> Record:
    return Record(message.key(), message.value(), dict(message.headers() or []), message.partition(), message.offset())
