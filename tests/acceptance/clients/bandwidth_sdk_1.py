"""Drives `bandwidth-sdk` 1.10: reads one order from the command line, prints what came of it. Both are JSON."""

import json
import sys
from typing import Any

from bandwidth_sdk import Message, RESTClientObject, set_client


class Picture:
    """Media by its address; the client's own is of Bandwidth's store alone."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get_full_media_url(self) -> str:
        return self.url


def send(order: dict[str, Any]) -> dict[str, Any]:
    terms = {"callback_url": order["callbackUrl"], "tag": order["tag"]}
    single = Message.send(order["from"], order["delivered"], "single", receipt_requested="all", **terms)
    batch = Message.send_batch()
    for to, text in [(order["delivered"], "several"), (order["failed"], "several"), ("", "several")]:
        batch.push_message(order["from"], to, text, receipt_requested="all", **terms)
    several = [message.id for message in batch.execute()]
    picture = Message.send(order["from"], order["delivered"], "picture", media_list=[Picture(order["media"])], **terms)
    errors = [message.error_message for message in batch.errors]
    return {"single": single.id, "several": several, "errors": errors, "picture": picture.id}


def read(order: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [shown(Message.get(one)) for one in order["ids"]], "listed": list(listed(order["from"]))}


def listed(sender: str) -> Any:
    page = 0
    while messages := Message.list(sender=sender, page=page, size=2):
        yield from (message.id for message in messages)
        page += 1


def shown(message: Message) -> dict[str, Any]:
    return {
        "id": message.id,
        "from": message.from_,
        "to": message.to,
        "state": message.state,
        "deliveryState": message.delivery_state,
        "deliveryCode": message.delivery_code,
    }


def main(order: dict[str, Any]) -> None:
    set_client(RESTClientObject(order["user"], (order["token"], order["secret"]), endpoint=order["url"]))
    print(json.dumps({"send": send, "read": read}[order["step"]](order)))


main(json.loads(sys.argv[1]))
