"""A real browser for tests: headless Chromium over the DevTools protocol on a pipe.

Covered: opening a local file at a width and in a colour scheme, JavaScript, pictures of the page,
and a record of every request, error and attempt to reach another machine. The protocol's messages
are JSON objects that end in a zero byte; Chromium reads them from file descriptor 3 and answers on
4, so that no port is opened and no package is needed.
"""

import base64
import fcntl
import json
import os
import select
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
_TIMEOUT_S = 90.0
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
    "--no-pings",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--disable-features=OptimizationHints,MediaRouter,Translate",
    "--remote-debugging-pipe",
    "--proxy-server=127.0.0.1:1",
)
"""What Chromium asks for itself ends at a port where nobody listens."""


@dataclass
class Proxy:
    """Listens where the browser's proxy should be, and answers nobody."""

    port: int
    requested: list[str] = field(default_factory=list)
    """First lines of the requests that arrived."""


@dataclass
class Browser:
    """A running Chromium: one message at a time."""

    writer: int
    reader: int
    proxy: Proxy
    _left: bytes = b""
    _last: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its result; events on the way are kept."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        os.write(self.writer, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") != self._last:
                self.events.append(answer)
            elif "error" in answer:
                raise RuntimeError(f"{method}: {answer['error']}")
            else:
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + _TIMEOUT_S
        while b"\0" not in self._left:
            wait = max(0.0, deadline - time.monotonic())
            if not select.select([self.reader], [], [], wait)[0]:
                raise TimeoutError(f"Chromium said nothing for {_TIMEOUT_S:.0f} s")
            chunk = os.read(self.reader, 1 << 20)
            if not chunk:
                raise RuntimeError("Chromium closed the pipe")
            self._left += chunk
        message, _, self._left = self._left.partition(b"\0")
        return json.loads(message)


@dataclass(frozen=True)
class Tab:
    """One page that is open and loaded."""

    browser: Browser
    session: str

    def run(self, script: str) -> Any:
        """What a JavaScript expression is worth; promises are waited for."""
        answer = self.browser.call(
            "Runtime.evaluate",
            self.session,
            expression=script,
            returnByValue=True,
            awaitPromise=True,
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """Press and release a key, such as Tab or Enter."""
        text = {"Enter": "\r"}.get(key, "")
        for kind in ("keyDown", "keyUp"):
            self.browser.call(
                "Input.dispatchKeyEvent",
                self.session,
                type=kind,
                key=key,
                code=key,
                text=text if kind == "keyDown" else "",
                windowsVirtualKeyCode={"Enter": 13, "Tab": 9}.get(key, 0),
            )

    def requests(self) -> list[str]:
        """Addresses of everything that the page requested."""
        return [
            event["params"]["request"]["url"] for event in self._of("Network.requestWillBeSent")
        ]

    def complaints(self) -> list[str]:
        """Exceptions, and what the console says."""
        kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [json.dumps(event["params"]) for kind in kinds for event in self._of(kind)]

    def picture(self, path: Path) -> None:
        """The whole page as PNG."""
        shot = self.browser.call(
            "Page.captureScreenshot", self.session, format="png", captureBeyondViewport=True
        )
        path.write_bytes(base64.b64decode(shot["data"]))

    def _of(self, method: str) -> list[dict[str, Any]]:
        self.run("1")  # what happened before has been told when this is answered
        return [
            event
            for event in self.browser.events
            if event.get("sessionId") == self.session and event["method"] == method
        ]


def open_tab(browser: Browser, path: Path, width: int, dark: bool = False) -> Tab:
    """Open a local file in a window of that width and wait until it is loaded."""
    context = browser.call(
        "Target.createBrowserContext",
        proxyServer=f"127.0.0.1:{browser.proxy.port}",
        proxyBypassList="<-loopback>",
        disposeOnDetach=True,
    )["browserContextId"]
    target = browser.call("Target.createTarget", url="about:blank", browserContextId=context)[
        "targetId"
    ]
    session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    for domain in ("Page", "Runtime", "Network", "Log"):
        browser.call(f"{domain}.enable", session)
    browser.call(
        "Emulation.setDeviceMetricsOverride",
        session,
        width=width,
        height=844 if width < 600 else 900,
        deviceScaleFactor=1,
        mobile=width < 600,
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.call("Emulation.setEmulatedMedia", session, features=[scheme])
    browser.call("Page.navigate", session, url=path.as_uri())
    tab = Tab(browser, session)
    tab.run(
        "new Promise(done => document.readyState === 'complete' && location.href !== 'about:blank'"
        " ? done() : addEventListener('load', done))"
    )
    return tab


@contextmanager
def open_browser(profile: Path) -> Iterator[Browser]:
    """A browser whose pages have one way to the network: a proxy that writes down who asks."""
    assert PROGRAM is not None
    with _listening() as proxy:
        to_child, writer = os.pipe()
        reader, from_child = os.pipe()
        # high enough that putting one at 3 or 4 closes no other
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (to_child, from_child)]

        def place_ends() -> None:
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        process = subprocess.Popen(
            [PROGRAM, *_FLAGS, f"--user-data-dir={profile}"],
            preexec_fn=place_ends,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (*ends, to_child, from_child):
            os.close(end)
        try:
            browser = Browser(writer, reader, proxy)
            yield browser
            browser.call("Browser.close")
        finally:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(writer)
            os.close(reader)


@contextmanager
def _listening() -> Iterator[Proxy]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        proxy = Proxy(server.getsockname()[1])

        def listen() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:  # closed: the test is over
                    return
                with connection:
                    connection.settimeout(5)
                    try:
                        line = connection.recv(4096).partition(b"\r\n")[0]
                    except OSError:
                        line = b""
                    proxy.requested.append(line.decode("latin-1"))

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        yield proxy
        server.shutdown(socket.SHUT_RDWR)
    thread.join(10)
