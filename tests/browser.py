"""A headless Chromium for tests, driven through the DevTools protocol (https://chromedevtools.github.io)."""

import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from better_auth import missing
from conftest import until

_FLAGS = ["--headless", "--remote-debugging-pipe", "--no-first-run", "--disable-background-networking"]
_ROOT_FLAGS = ["--no-sandbox"]  # Chromium refuses to run its sandbox as root
# Chromium reads commands from descriptor 3 and answers on 4.
_WITH_PIPE = ["sh", "-c", 'exec "$0" "$@" 3<&0 4>&1 </dev/null >&2']
_ANSWER_SECONDS = 30
_MIDDLE_OF = """(element => {
  if (!element?.checkVisibility()) return null;
  element.scrollIntoView({block: "center", behavior: "instant"});
  const box = element.getBoundingClientRect();
  return [box.x + box.width / 2, box.y + box.height / 2];
})"""


class Browser:
    """The process. Messages are JSON, each ended by a zero byte."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._received = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; what else is said meanwhile is added to `events`."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        assert self._process.stdin
        self._process.stdin.write(json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._number:
            self.events.append(answer)
        assert "result" in answer, f"{method}: {answer}"
        return dict(answer["result"])

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout
        while b"\0" not in self._received:
            assert select.select([self._process.stdout], [], [], _ANSWER_SECONDS)[0], "Chromium is silent"
            read = os.read(self._process.stdout.fileno(), 1 << 16)
            assert read, "Chromium has ended"
            self._received += read
        message, _, self._received = self._received.partition(b"\0")
        return dict(json.loads(message))

    @contextmanager
    def page(self) -> Iterator["Page"]:
        """Open a page that shares no cookie and no cache with any other."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Log", "Network", "Page", "Runtime"):
            self.call(f"{domain}.enable", session)
        yield Page(self, session)
        self.call("Target.disposeBrowserContext", browserContextId=context)


class Page:
    """A page, and the hands and eyes of somebody in front of it."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session

    def open(self, url: str) -> None:
        """Go to a URL, as from the address bar, and wait for its scripts to have been loaded."""
        failure = self._call("Page.navigate", url=url).get("errorText")
        assert not failure, f"{url}: {failure}"
        until(lambda: self.evaluate("document.readyState") == "complete")

    def evaluate(self, expression: str) -> Any:
        """What a JavaScript expression, or the promise that it makes, comes to."""
        said = self._call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    def sees(self, text: str) -> bool:
        """Whether this text stands on the page, where it can be seen."""
        return text in self.evaluate("document.body.innerText")

    def fill(self, selector: str, text: str) -> None:
        """Replace what stands in a field by this, typed."""
        self.click(selector)
        self.evaluate(f"document.querySelector({json.dumps(selector)}).select()")
        self._call("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        """Click on an element with the mouse, once it can be seen."""
        middle = f"{_MIDDLE_OF}(document.querySelector({json.dumps(selector)}))"
        x, y = until(lambda: self.evaluate(middle))
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def problems(self) -> list[str]:
        """Every error and warning that the console shows, and every request that was blocked or failed."""
        self.evaluate("null")  # what happened before this is known after it
        found = []
        for event in self._browser.events:
            said = event.get("params", {})
            if event.get("sessionId") != self._session:
                continue
            match event["method"]:
                case "Runtime.exceptionThrown":
                    found.append(str(said["exceptionDetails"]))
                case "Log.entryAdded" if said["entry"]["level"] in {"error", "warning"}:
                    found.append(f"{said['entry']['text']} {said['entry'].get('url', '')}")
                case "Runtime.consoleAPICalled" if said["type"] in {"error", "warning", "assert"}:
                    found.append(str([each.get("value") or each.get("description") for each in said["args"]]))
                case "Network.loadingFailed" if not said.get("canceled"):
                    found.append(f"{said['type']}: {said['errorText']} {said.get('blockedReason', '')}")
        return found

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **parameters)


@contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """Start Chromium with a profile of its own in `folder`, and end it."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if not program:
        missing("Chromium is not installed (Debian: chromium)")
    flags = [*_FLAGS, f"--user-data-dir={folder}", *(_ROOT_FLAGS if os.geteuid() == 0 else ())]
    with (
        (folder / "chromium").open("wb") as log,
        subprocess.Popen(
            [*_WITH_PIPE, str(program), *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            bufsize=0,
            env={"PATH": os.environ["PATH"], "HOME": str(folder)},
        ) as process,
    ):
        try:
            browser = Browser(process)
            yield browser
            browser.call("Browser.close")
        finally:
            process.terminate()
            process.wait(timeout=30)
