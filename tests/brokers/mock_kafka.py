"""The mock cluster of librdkafka as a process: a call per input line, an answer per output line; ends with its input.

The C library inside the `confluent-kafka` wheel speaks Kafka's protocol here; nothing else of the wheel is used.
"""

import ctypes
import json
import sys

from confluent_kafka import cimpl

_PRODUCER = 0


def _native(argument: int | str | list[int] | None) -> list[object]:
    """Converts an argument for C; a list of numbers becomes its length and its address."""
    if isinstance(argument, list):
        return [ctypes.c_size_t(len(argument)), (ctypes.c_int * len(argument))(*argument)]
    return [argument.encode() if isinstance(argument, str) else argument]


def main(brokers: int) -> None:
    library = ctypes.CDLL(cimpl.__file__)
    for name in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_mock_cluster_new"):
        getattr(library, name).restype = ctypes.c_void_p
    library.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
    error, size = ctypes.create_string_buffer(512), ctypes.c_size_t(512)
    settings = ctypes.c_void_p(library.rd_kafka_conf_new())
    library.rd_kafka_conf_set(settings, b"log_level", b"3", error, size)
    handle = ctypes.c_void_p(library.rd_kafka_new(_PRODUCER, settings, error, size))
    cluster = ctypes.c_void_p(library.rd_kafka_mock_cluster_new(handle, brokers))
    print(json.dumps(library.rd_kafka_mock_cluster_bootstraps(cluster).decode()), flush=True)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        function = getattr(library, f"rd_kafka_mock_{name}")
        answer = function(cluster, *(native for argument in arguments for native in _native(argument)))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
