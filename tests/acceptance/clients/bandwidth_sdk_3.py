"""Drives `bandwidth-sdk` 3.1: reads one order from the command line, prints what came of it. Both are JSON."""

import json
import sys
from typing import Any

import bandwidth


def send(api: Any, order: dict[str, Any]) -> dict[str, Any]:
    terms = {"callback_url": order["callbackUrl"], "callback_http_method": "get", "tag": order["tag"]}
    single = api.send_message(order["from"], order["delivered"], "single", receipt_requested="all", **terms)
    several = api.send_messages(
        [
            {
                "from": order["from"],
                "to": to,
                "text": "several",
                "receiptRequested": "all",
                "callbackUrl": order["brokenUrl"],
                "fallbackUrl": order["fallbackUrl"],
                "tag": order["tag"],
            }
            for to in (order["delivered"], order["failed"], "")
        ]
    )
    picture = api.send_message(order["from"], order["delivered"], "picture", media=[order["media"]], **terms)
    return {
        "single": single,
        "several": [one["id"] for one in several if one["result"] == "accepted"],
        "errors": [one["error"]["message"] for one in several if one["result"] == "error"],
        "picture": picture,
    }


def read(api: Any, order: dict[str, Any]) -> dict[str, Any]:
    return {
        "messages": [shown(api.get_message(one)) for one in order["ids"]],
        "listed": [message["id"] for message in api.list_messages(from_=order["from"], size=2)],
    }


def shown(message: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": message["id"],
        "from": message["from"],
        "to": message["to"],
        "state": message["state"],
        "deliveryState": message.get("delivery_state"),
        "deliveryCode": message.get("delivery_code"),
    }


def main(order: dict[str, Any]) -> None:
    api = bandwidth.client("messaging", order["user"], order["token"], order["secret"], api_endpoint=order["url"])
    print(json.dumps({"send": send, "read": read}[order["step"]](api, order)))


main(json.loads(sys.argv[1]))
