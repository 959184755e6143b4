"""A JupyterLab of its own for tests and benchmarks of the panels, and a browser to drive it."""

import asyncio
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]


def free_port() -> int:
    "A port that nothing listens on."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_for(url: str, server: subprocess.Popen, log: Path, seconds: float = 60) -> None:
    "Return when a server answers."
    end = time.time() + seconds
    while time.time() < end:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except OSError:
            assert server.poll() is None, log.read_text()[-2000:]
            time.sleep(0.3)
    raise TimeoutError(f"{url} did not answer: {log.read_text()[-2000:]}")


def write_notebook(path: Path, *cells: str) -> None:
    "A notebook with these code cells."
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)


def stop(server: subprocess.Popen) -> None:
    "End a server with its kernels: its own process group."
    for signal_ in (signal.SIGINT, signal.SIGTERM):
        if server.poll() is None:
            os.killpg(server.pid, signal_)
            time.sleep(0.3)
    server.wait(20)


class Lab:
    "A running JupyterLab: where it is, and where its notebooks lie."

    def __init__(self, folder: Path, theme: str = "JupyterLab Light", application: str = "jupyterlab") -> None:
        self.root, self.token, self.port = folder / "notebooks", secrets.token_hex(16), free_port()
        self.root.mkdir()
        settings = folder / "CONFIG" / "labconfig"
        settings.mkdir(parents=True)
        off = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}  # its question covers the buttons
        (settings / "page_config.json").write_text(json.dumps(off))
        (settings / "default_setting_overrides.json").write_text(json.dumps({"@jupyterlab/apputils-extension:themes": {"theme": theme}}))
        homes = {f"JUPYTER_{name}_DIR": str(folder / name) for name in ("CONFIG", "DATA", "RUNTIME")}
        options = ["--no-browser", "--ip=127.0.0.1", f"--port={self.port}", f"--ServerApp.root_dir={self.root}", f"--IdentityProvider.token={self.token}"]
        options += ["--KernelRestarter.restart_limit=1000"]  # five kernels killed in a row would otherwise be the last
        options += ["--ServerApp.port_retries=0", "--allow-root", "--LabApp.expose_app_in_browser=True"]
        self.log = folder / "server.log"
        with self.log.open("w") as log:
            command = [sys.executable, "-m", application, *options]
            self.server = subprocess.Popen(command, env=os.environ | homes, stdout=log, stderr=log, start_new_session=True)
        wait_for(f"http://127.0.0.1:{self.port}/api/status?token={self.token}", self.server, self.log)

    def url(self, notebook: str = "label.ipynb", port: int | None = None) -> str:
        "Address of a notebook, through another port if a proxy listens there."
        return f"http://127.0.0.1:{port or self.port}/lab/workspaces/panel/tree/{notebook}?reset&token={self.token}"

    def kernels(self) -> list[int]:
        "Process ids of the running kernels: the children of the server."
        found = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(self.server.pid)], capture_output=True, text=True).stdout
        return [int(line.split()[0]) for line in found.splitlines() if "ipykernel" in line]


@contextmanager
def running_lab(folder: Path, **more: str) -> Iterator[Lab]:
    "JupyterLab while the block runs."
    lab = Lab(folder, **more)
    try:
        yield lab
    finally:
        stop(lab.server)


class Proxy:
    "A TCP proxy that delays every byte by `delay` seconds each way, and can cut all connections for a while."

    def __init__(self, port: int, delay: float) -> None:
        self.target, self.delay, self.port = port, delay, free_port()
        self.cut_until = 0.0
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        ready.wait(10)

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._server = self._loop.run_until_complete(asyncio.start_server(self._accept, "127.0.0.1", self.port))
        ready.set()
        self._loop.run_forever()
        self._server.close()
        for writer in list(self._open):
            writer.transport.abort()
        self._loop.run_until_complete(asyncio.sleep(2 * self.delay + 0.2))
        self._loop.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if time.time() < self.cut_until:
            writer.transport.abort()
            return
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        for stream in (writer, there_writer):
            stream.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open.add(stream)
        await asyncio.gather(self._pipe(reader, there_writer), self._pipe(there_reader, writer), return_exceptions=True)

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        sender = asyncio.create_task(self._send(waiting, writer))
        try:
            while data := await reader.read(65536):
                waiting.put_nowait((self._loop.time() + self.delay, data))
        except OSError:
            pass
        waiting.put_nowait((self._loop.time() + self.delay, b""))
        await sender

    async def _send(self, waiting: asyncio.Queue, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                due, data = await waiting.get()
                await asyncio.sleep(max(0.0, due - self._loop.time()))
                if not data:
                    break
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    def cut(self, seconds: float) -> None:
        "Break all connections, and refuse new ones for so long."
        self.cut_until = time.time() + seconds
        self._loop.call_soon_threadsafe(lambda: [writer.transport.abort() for writer in list(self._open)])

    def close(self) -> None:
        "Stop; connections end with it."
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)


# ---- what a person does in the browser ----


def open_notebook(page, url: str) -> None:
    "Open a notebook and wait until its kernel is there."
    page.goto(url)
    loaded(page)
    page.wait_for_function("() => window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'")


def loaded(page) -> None:
    "Wait until JupyterLab shows the notebook."
    page.wait_for_selector("#jupyterlab-splash", state="detached")
    page.wait_for_selector(".jp-Notebook .jp-Cell")


def run_all(page) -> None:
    "Run all cells."
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")


def image_ready(page, panel: str = ".pathloop-panel") -> None:
    "Wait until an image has been on screen for longer than the 200 ms in which the panel ignores decisions."
    page.wait_for_function(f"() => performance.now() - Number(document.querySelector('{panel}')?.dataset.shown ?? Infinity) > 220")


def saved(page, count: int, panel: str = ".pathloop-panel") -> None:
    "Wait until the panel says that so many are saved."
    page.wait_for_function(f"() => document.querySelector('{panel} [data-part=\"saved\"]')?.textContent === '{count}'")


def press(page, *keys: str) -> None:
    "Look at the image, then press keys."
    image_ready(page)
    for key in keys:
        page.keyboard.press(key)


def focus(page, panel: str = ".pathloop-panel") -> None:
    "Make the panel's keys live."
    page.locator(panel).first.focus()


def picture(page, name: str) -> None:
    "Keep a screenshot where PATHLOOP_SCREENSHOTS says."
    if os.environ.get("PATHLOOP_SCREENSHOTS"):
        page.screenshot(path=f"{os.environ['PATHLOOP_SCREENSHOTS']}/{name}.png")
