"""Headless Chromium as people use it, and a receiver with a sandbox and a webhook for what they do there."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException, WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.processes import PATIENT, Server, foreground, serving, until

ADMIN, READER = "admin-token-f00", "reader-token-ba7"
PAIR = "callbacks:pass-77d"
# A desk far from Greenwich, so that local times differ from UTC.
TIMEZONE = "America/New_York"
CONFIG = f"""
callback_credentials = ["{PAIR}"]
api_tokens = ["{ADMIN}", "desk:read:{READER}"]
"""


# --- the browser ---


@contextmanager
def _unless_replaced() -> Iterator[None]:
    """Ignores that an element was replaced while the driver used it, in all words that the driver has for it."""
    try:
        yield
    except (StaleElementReferenceException, NoSuchElementException):
        pass
    except WebDriverException as error:
        if "does not belong to the document" not in str(error.msg):
            raise


class Browser:
    """A browser with one window. `base_url` is the start page without the slash at its end."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver
        self.base_url = ""

    def open(self, path: str = "/") -> None:
        self.driver.get(self.base_url + path)

    @property
    def path(self) -> str:
        """Path and query of the page."""
        return self.driver.current_url.removeprefix(self.base_url)

    @property
    def text(self) -> str:
        """What is to be read on the page now; live parts may be replaced meanwhile, and a new page begins empty."""
        while True:
            with _unless_replaced():
                return self.one("body").text

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def press(self, words: str) -> None:
        """Presses the button, or follows the link, with these words, or else whose words begin with them."""
        either, begins = "//*[self::a or self::button or self::summary]", f"starts-with(normalize-space(), '{words}')"
        while True:
            with _unless_replaced():
                exact = self.driver.find_elements(By.XPATH, f"{either}[normalize-space() = '{words}']")
                (exact[0] if exact else self.driver.find_element(By.XPATH, f"{either}[{begins}]")).click()
                return

    def has(self, words: str) -> bool:
        path = f"//*[self::a or self::button][starts-with(normalize-space(), '{words}')]"
        return bool(self.driver.find_elements(By.XPATH, path))

    def fill(self, name: str, value: str) -> None:
        element = self.one(f"main [name='{name}']:not([type=hidden])")
        element.clear()
        element.send_keys(value)

    def keys(self, *keys: str) -> None:
        """Types without a pointer, into what has the focus."""
        self.driver.switch_to.active_element.send_keys(*keys)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def until_reads(self, words: str, seconds: float = 30) -> None:
        until(lambda: words in self.text, seconds)

    def sign_in(self, token: str = ADMIN, path: str = "/") -> None:
        """A new session with a token, on a page."""
        # The page of an earlier test refreshes itself, and complains when its server has ended.
        self.driver.get("about:blank")
        self.complaints()
        self.open("/login")
        self.driver.delete_all_cookies()
        self.open(path)
        self.one("#token").send_keys(token)
        self.press("Sign in")
        # The next page would be requested without the cookie.
        until(lambda: self.all("header form[role=search]"))

    def emulate(self, *, scheme: str = "light", width: int = 1280, height: int = 900, scripts: bool = True) -> None:
        for command, parameters in (
            ("setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}),
            (
                "setDeviceMetricsOverride",
                {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
            ),
            ("setScriptExecutionDisabled", {"value": not scripts}),
        ):
            self.driver.execute_cdp_cmd(f"Emulation.{command}", parameters)

    def offline(self, is_offline: bool) -> None:
        """Takes the network from the browser, or gives it back."""
        conditions = {"offline": is_offline, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        self.driver.execute_cdp_cmd("Network.enable", {})
        self.driver.execute_cdp_cmd("Network.emulateNetworkConditions", conditions)

    def complaints(self) -> list[str]:
        """The errors of the console since the last call: of scripts, of the policy, of files that are not there.

        A page that is answered with the status of an error is none.
        """
        entries = self.driver.get_log("browser")
        return [
            entry["message"]
            for entry in entries
            if entry["level"] == "SEVERE" and not (entry["source"] == "network" and "/static/" not in entry["message"])
        ]

    def requested_hosts(self) -> set[str]:
        """The hosts of all requests since the last call."""
        hosts = set()
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                parts = urlsplit(message["params"]["request"]["url"])
                hosts.add(parts.netloc if parts.scheme in ("http", "https", "ws", "wss") else f"{parts.scheme}:")
        return hosts


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Debian's Chromium without a window; skips where it or its driver is missing."""
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    missing = [name for name, path in programs.items() if path is None]
    if missing:
        pytest.skip(f"no {' and no '.join(missing)}: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = str(programs["chromium"])
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
        "--lang=en-US",
        f"--user-data-dir={folder / 'profile'}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # The path of the driver, else Selenium Manager looks for one to download.
    service = webdriver.ChromeService(executable_path=str(programs["chromedriver"]), log_output=str(folder / "driver"))
    try:
        driver = webdriver.Chrome(options=options, service=service)
    except WebDriverException as error:
        pytest.skip(f"chromium does not start here: {error.msg}")
    try:
        driver.set_page_load_timeout(60)
        driver.execute_cdp_cmd("Emulation.setTimezoneOverride", {"timezoneId": TIMEZONE})
        made = Browser(driver)
        made.emulate()
        yield made
    finally:
        driver.quit()


# --- accessibility ---


def axe() -> str:
    """The source of axe-core, as the package of PyPI has it."""
    found = find_spec("axe_core_python")
    if found is None or found.origin is None:
        pytest.skip("no axe-core: pip install axe-core-python")
    return Path(found.origin).with_name("axe.min.js").read_text("utf-8")


def findings(opened: Browser, source: str) -> list[Any]:
    """What axe-core finds serious or critical on the page."""
    opened.run(source)
    found = opened.driver.execute_async_script("axe.run().then(arguments[0], arguments[0])")
    return [
        (violation["id"], [node["html"][:200] for node in violation["nodes"]])
        for violation in found["violations"]
        if violation["impact"] in ("serious", "critical")
    ]


# --- the receiver ---


class Webhook:
    """An endpoint for events. It answers with `status` and records the bodies."""

    def __init__(self) -> None:
        self.status = 200
        self.text = "thank you"
        self.events: list[dict[str, Any]] = []
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                event = json.loads(self.rfile.read(int(self.headers["content-length"])))
                body = webhook.text.encode()
                self.send_response(webhook.status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                if webhook.status == 200:
                    webhook.events.append(event)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/events"

    @contextmanager
    def serving(self) -> Iterator["Webhook"]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()

    def sink(self, name: str = "crm", **more: str) -> str:
        """A table of the settings. Retries come quickly."""
        given = {"name": name, "type": "webhook", "url": self.url, **more}
        lines = [f'{option} = "{value}"' for option, value in given.items()]
        return "\n".join(["", "[[sinks]]", *lines, 'egress_allow = ["127.0.0.1/32"]', 'schedule = ["1s"]', ""])


@dataclass(slots=True)
class Site:
    """A running receiver, what the sandbox sends to it, and what it publishes."""

    folder: Path
    server: Server
    webhook: Webhook
    sandbox: httpx2.Client
    api: httpx2.Client
    sent: list[str] = field(default_factory=list)

    def send(self, *recipients: str, **more: Any) -> str:
        """Sends a message by the sandbox; returns its id."""
        body = {"from": "+19195551212", "to": [*recipients], "text": "Your order is ready", "applicationId": "shop"}
        answer = self.sandbox.post("/api/v2/users/u-1/messages", json={**body, **more})
        assert answer.status_code == 202, answer.text
        self.sent.append(answer.json()["id"])
        return self.sent[-1]

    def receive(self, *events: Any, body: bytes | None = None) -> None:
        """A callback that the sandbox would not send."""
        user, _, password = PAIR.partition(":")
        content = body if body is not None else json.dumps(events).encode()
        answer = self.api.post(
            "/callbacks/bandwidth/v2",
            content=content,
            auth=(user, password),
            headers={"Authorization": "", "Content-Type": "application/json"},
        )
        assert answer.status_code == 200, answer.text

    def settle(self) -> None:
        """Waits until every callback of the sandbox is sent and processed."""
        assert self.sandbox.get("/sandbox/idle", params={"wait": 45}).json()["idle"]
        until(lambda: self.api.get("/api/status").json()["journal"]["pending"] == 0)

    def messages(self) -> int:
        return len(self.api.get("/api/messages", params={"size": 1000}).json())

    def sink(self, name: str = "crm") -> Any:
        return self.api.get(f"/api/sinks/{name}").json()


@contextmanager
def site(folder: Path, config: Callable[[Webhook], str] = Webhook.sink) -> Iterator[Site]:
    """A receiver with a webhook sink, and a sandbox that sends it callbacks a thousand times quicker than Bandwidth."""
    with ExitStack() as stack:
        webhook = stack.enter_context(Webhook().serving())
        (folder / "receiver.toml").write_text(CONFIG + config(webhook), "utf-8")
        server = stack.enter_context(serving(folder))
        (folder / "sandbox").mkdir()
        running = stack.enter_context(
            foreground(
                folder / "sandbox",
                "sandbox",
                *("--port", "0", "--speed", "1000", "--no-rate-limit", "--callback-credentials", PAIR),
                *("--outbound-url", f"{server.url}/callbacks/bandwidth/v2"),
                *("--v1-inbound-url", f"http://{PAIR}@{urlsplit(server.url).netloc}/callbacks/bandwidth/v1"),
            )
        )
        sandbox_url = running.address("sandbox")
        sandbox = stack.enter_context(httpx2.Client(base_url=sandbox_url, auth=("token", "secret"), **PATIENT))
        api = stack.enter_context(
            httpx2.Client(base_url=server.url, headers={"Authorization": f"Bearer {ADMIN}"}, **PATIENT)
        )
        yield Site(folder, server, webhook, sandbox, api)
