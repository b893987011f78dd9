"""Chromium without a window, driven by its DevTools protocol over a pipe: JSON messages that end with a zero byte."""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
PROGRAM = next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page of a browser. ``said`` collects errors of its console, ``asked`` the addresses that it has loaded."""

    def __init__(self, send, receive):
        self.send, self.receive, self.buffer = send, receive, b""
        self.numbers = itertools.count(1)
        self.session, self.said, self.asked, self.events = None, [], [], set()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        """The result of one command."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.send, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def open(self, path, width=1200, height=900, dark=False):
        """Load a file, and wait until the page says that it is ready; the seconds that it took."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.said.clear(), self.asked.clear(), self.events.clear()
        begun = time.monotonic()
        self.call("Page.navigate", url=Path(path).absolute().as_uri())
        self.wait("document.documentElement?.dataset.ready === 'yes'")
        return time.monotonic() - begun

    def wait(self, condition, seconds=60):
        end = time.monotonic() + seconds
        while not self.run(condition):
            assert time.monotonic() < end, f"not in {seconds} s: {condition}; {self.said}"
            time.sleep(0.02)

    def run(self, code):
        """The value of an expression."""
        answer = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def fill(self, element, value, event="change"):
        """Give a control a value as a user does."""
        found = f"document.getElementById({json.dumps(element)})"
        self.run(f"{found}.value = {json.dumps(value)}, {found}.dispatchEvent(new Event({json.dumps(event)}))")

    def press(self, key, code=0, text=""):
        about = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **about)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def picture(self, path, whole=False, clip=None):
        more = {"clip": {**clip, "scale": 1}} if clip else {}
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole, **more)["data"]
        Path(path).write_bytes(base64.b64decode(data))

    def _next(self):
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.receive], [], [], 120)
            assert ready, "the browser does not answer"
            self.buffer += os.read(self.receive, 1 << 20)
        text, _, self.buffer = self.buffer.partition(b"\0")
        message = json.loads(text)
        params = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.said.append(str(params["exceptionDetails"].get("exception", params)))
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                self.said.append(str(params["args"]))
            case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                self.said.append(params["entry"]["text"])
            case "Network.requestWillBeSent":
                self.asked.append(params["request"]["url"])
        return message


@contextmanager
def browser(folder):
    """A browser with an own profile in a folder."""
    from_us, send = os.pipe()
    receive, to_us = os.pipe()
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"]
    options += ["--disable-background-networking", "--disable-dev-shm-usage", f"--user-data-dir={folder}"]
    # The browser reads descriptor 3 and writes 4.
    command = ["bash", "-c", f'exec "$0" "$@" 3<&{from_us} 4>&{to_us}', PROGRAM, *options]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, pass_fds=(from_us, to_us), **quiet)
    os.close(from_us), os.close(to_us)
    try:
        yield Browser(send, receive)
    finally:
        process.kill()
        process.wait()
        os.close(send), os.close(receive)
