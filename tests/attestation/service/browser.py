"""Debian's Chromium, headless, driven over a pipe (`--remote-debugging-pipe`): no library, no port."""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run", "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip
# Chromium reads commands from descriptor 3 and writes to 4.
_SHELL = 'in=$1; out=$2; shift 2; eval "exec \\"\\$@\\" 3<&$in 4>&$out"'


class Browser:
    """One page. `events` keeps what the browser reported meanwhile: dialogs, log entries, requests."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = os.fdopen(commands, "wb", 0), os.fdopen(answers, "rb", 0)
        self._buffer, self._count = b"", 0
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    _session: str | None = None
    _seen_load = False

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command and its answer."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        self._commands.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                assert "error" not in answer, (method, answer)
                result: dict[str, Any] = answer["result"]
                return result
            self._event(answer)

    def open(self, url: str) -> None:
        """Load a page and everything that it asks for."""
        self._seen_load = False
        self.call("Page.navigate", url=url)
        self._await_load()

    def type_and_enter(self, text: str) -> None:
        """Into whatever has the focus; Enter sends the form."""
        self.call("Input.insertText", text=text)
        self._seen_load = False
        key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
        self.call("Input.dispatchKeyEvent", type="keyDown", **key)
        self.call("Input.dispatchKeyEvent", type="keyUp", **{k: v for k, v in key.items() if k != "text"})
        self._await_load()

    def value(self, expression: str) -> Any:
        """What an expression is in the page."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def screenshot(self, path: Path, *, width: int = 1280, height: int = 900) -> None:
        """The whole page as PNG."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        full = self.call("Page.getLayoutMetrics")["cssContentSize"]["height"]
        self.call("Emulation.setDeviceMetricsOverride", **size | {"height": int(full)})
        data = self.call("Page.captureScreenshot", format="png")["data"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(data))

    def seen(self, method: str) -> list[dict[str, Any]]:
        """Parameters of every event of this kind."""
        return [event["params"] for event in self.events if event["method"] == method]

    def close(self) -> None:
        self._commands.close()
        self._answers.close()

    def _await_load(self) -> None:
        while not self._seen_load:
            self._event(self._next())

    def _event(self, message: dict[str, Any]) -> None:
        self.events.append(message)
        if message.get("method") == "Page.loadEventFired":
            self._seen_load = True
        if message.get("method") == "Page.javascriptDialogOpening":
            self._count += 1
            accept = {"id": self._count, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
            self._commands.write(json.dumps(accept | {"sessionId": self._session}).encode() + b"\0")

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            more = self._answers.read(1 << 16)
            assert more, "the browser ended"
            self._buffer += more
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A fresh profile below `folder`."""
    assert CHROMIUM is not None
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    argv = ["bash", "-c", _SHELL, "bash", str(to_read), str(from_write), CHROMIUM, *_FLAGS, f"--user-data-dir={folder}"]
    child = subprocess.Popen(argv, pass_fds=(to_read, from_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(to_read)
    os.close(from_write)
    made = Browser(to_write, from_read)
    try:
        yield made
    finally:
        made.close()
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
