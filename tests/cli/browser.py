"""Pages in headless Chromium, over its DevTools pipe: what they log, what they load, what they look like."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    def __init__(self):
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        # Chromium reads commands from 3 and writes answers to 4; these here stay clear of both.
        (read_in, write_in), (read_out, write_out) = (
            [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 100) for end in self._pipe()] for _ in range(2)
        )
        arguments = [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            f"--user-data-dir={self.profile.name}", "--remote-debugging-pipe", "about:blank",
        ]  # fmt: skip
        self.process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{read_in} 4>&{write_out}', "bash", *arguments],
            pass_fds=(read_in, write_out), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, env={**os.environ, "HOME": self.profile.name},
        )  # fmt: skip
        os.close(read_in)
        os.close(write_out)
        self.to, self.back = write_in, read_out
        self.pending = b""
        self.number = 0
        self.events = []

    @staticmethod
    def _pipe():
        ends = os.pipe()
        yield from ends
        for end in ends:
            os.close(end)

    def close(self):
        os.close(self.to)
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.back)
        self.profile.cleanup()

    def command(self, method: str, session: str = None, **params) -> dict:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        answer = self._read_until(lambda got: got.get("id") == self.number, 60)
        if answer is None:
            raise TimeoutError(f"Chromium does not answer {method}")
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _read_until(self, wanted, seconds: float):
        """The first message that is wanted, or None after so many seconds; events among them are kept."""
        end = time.monotonic() + seconds
        while True:
            while b"\0" in self.pending:
                raw, self.pending = self.pending.split(b"\0", 1)
                message = json.loads(raw)
                if "method" in message:
                    self.events.append(message)
                if wanted(message):
                    return message
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.back], [], [], left)[0]:
                return None
            piece = os.read(self.back, 1 << 20)
            if not piece:
                raise RuntimeError("Chromium has gone")
            self.pending += piece

    def open(self, url: str, width: int = 1280, height: int = 900, dark: bool = False, phone: bool = False) -> "Page":
        return Page(self, url, width, height, dark, phone)


class Page:
    def __init__(self, browser: Browser, url: str, width: int, height: int, dark: bool, phone: bool):
        self.browser = browser
        self.target = browser.command("Target.createTarget", url="about:blank")["targetId"]
        self.session = browser.command("Target.attachToTarget", targetId=self.target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.command(f"{domain}.enable")
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height,
            deviceScaleFactor=2 if phone else 1, mobile=phone,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])
        self.command("Page.navigate", url=url)
        self.url = url
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def command(self, method: str, **params) -> dict:
        return self.browser.command(method, self.session, **params)

    def evaluate(self, expression: str):
        result = self.command("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def wait(self, expression: str, seconds: float = 30):
        end = time.monotonic() + seconds
        while not self.evaluate(expression):
            if time.monotonic() > end:
                raise TimeoutError(f"{self.url}: {expression} stays false")
            time.sleep(0.05)

    def _events(self, method: str) -> list:
        self.browser.command("Browser.getVersion")  # what happened before this answer has arrived
        events = [e for e in self.browser.events if e.get("sessionId") == self.session]
        return [e["params"] for e in events if e["method"] == method]

    def complaints(self) -> list:
        """Uncaught exceptions, console messages and the browser's own errors and warnings."""
        return (
            [e["exceptionDetails"] for e in self._events("Runtime.exceptionThrown")]
            + [e for e in self._events("Runtime.consoleAPICalled")]
            + [e["entry"] for e in self._events("Log.entryAdded") if e["entry"]["level"] in ("error", "warning")]
        )

    def requests(self) -> list:
        """The addresses it asked for, its own and data: ones left out."""
        urls = [e["request"]["url"] for e in self._events("Network.requestWillBeSent")]
        return [url for url in urls if url != self.url and not url.startswith("data:")]

    def screenshot(self, whole: bool = True, **options) -> bytes:
        if whole:
            size = self.command("Page.getLayoutMetrics")["cssContentSize"]
            options["clip"] = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.command("Page.captureScreenshot", captureBeyondViewport=whole, **options)
        return base64.b64decode(shot["data"])

    def close(self):
        self.browser.command("Target.closeTarget", targetId=self.target)
