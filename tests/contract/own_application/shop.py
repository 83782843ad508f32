"""An application of somebody else: it sends messages to customers and accepts Bandwidth's callbacks."""

import base64
import json
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Shop:
    """Sends reminders to customers, and records their delivery and the replies."""

    def __init__(self, user, password):
        self.expected = _basic(user, password)
        self.bandwidth_url, self.bandwidth_credentials = None, ":"
        self.delivered, self.undeliverable, self.replies, self._seen = set(), set(), [], set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.shop = self
        self._server.daemon_threads = False
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def remind(self, number):
        """Sends a message and returns its id."""
        body = {"from": "+19195551234", "to": number, "text": "Your order waits.", "applicationId": "shop"}
        request = urllib.request.Request(
            f"{self.bandwidth_url}/api/v2/users/shop/messages",
            json.dumps(body).encode(),
            {"Content-Type": "application/json", "Authorization": _basic(*self.bandwidth_credentials.split(":", 1))},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["id"]

    def take(self, event):
        message, kind = event["message"], event["type"]
        if (message["id"], kind) in self._seen:
            return
        self._seen.add((message["id"], kind))
        if kind == "message-received":
            self.replies.append(message["text"])
        elif kind == "message-delivered":
            self.delivered.add(event["to"])
        elif kind == "message-failed":
            self.undeliverable.add(event["to"])


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != self.server.shop.expected:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="shop"')
        else:
            for event in json.loads(body):
                self.server.shop.take(event)
            self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def _basic(user, password):
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
