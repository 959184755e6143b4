"""A PostgreSQL server for as long as it is needed: in a folder of its own, on 127.0.0.1, stopped by whoever started it."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

DEBIAN = Path("/usr/lib/postgresql")


def binaries() -> Path | None:
    "The folder of PostgreSQL's own commands, None where it is not installed."
    found = shutil.which("initdb")
    folders = sorted((folder / "bin" for folder in DEBIAN.glob("*") if folder.name.isdecimal()), key=lambda f: int(f.parent.name))
    return Path(found).parent if found else folders[-1] if folders else None


def postgresql_missing() -> str | None:
    "Why no server can be started, None when one can."
    if binaries() is None:
        return "no PostgreSQL: initdb is not installed (Debian: apt-get install postgresql)"
    if find_spec("psycopg") is None:
        return "no PostgreSQL: the package psycopg is not installed (pip install pathloop[postgresql])"
    return None


class PrivateServer:
    "A server that trusts every local user. A server refuses to run as root, so root starts it as somebody else."

    def __init__(self, durable: bool = True) -> None:
        memory = None if durable or not os.access("/dev/shm", os.W_OK) else "/dev/shm"
        self.folder = Path(tempfile.mkdtemp(prefix="pathloop-postgresql-", dir=memory))
        self.user = _somebody_else() if os.geteuid() == 0 else None
        if self.user:
            shutil.chown(self.folder, self.user)
        self.port, self.settings, self.databases = _free_port(), "" if durable else "-F", 0
        self._run("initdb", "-D", self.folder / "data", "-A", "trust", "-U", "pathloop", "-E", "UTF8", "--no-sync")
        self.start()

    def _run(self, command: str, *arguments: str | Path) -> None:
        as_whom = {"user": self.user, "group": pwd.getpwnam(self.user).pw_gid, "extra_groups": []} if self.user else {}
        with tempfile.TemporaryFile() as said:  # Not a pipe, which the server would inherit and keep open
            done = subprocess.run([str(binaries() / command), *map(str, arguments)], cwd="/", stdout=said, stderr=said, **as_whom)
            said.seek(0)
            if done.returncode:
                raise RuntimeError(f"{command} failed: {said.read().decode()}")

    def _control(self, *arguments: str) -> None:
        options = f"-p {self.port} -h 127.0.0.1 -k {self.folder} -c max_connections=60 {self.settings}"
        self._run("pg_ctl", "-D", self.folder / "data", "-w", "-l", self.folder / "log", "-o", options, *arguments)

    def start(self) -> None:
        self._control("start")

    def stop(self, how: str = "immediate") -> None:
        "End it, `immediate` as if the machine had lost power."
        self._control("stop", "-m", how)

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://pathloop@127.0.0.1:{self.port}/{database}"

    def new_database(self, template: str = "template0") -> str:
        "The address of a new database: empty, or a copy of another that nobody is using."
        import psycopg

        self.databases += 1
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE d{self.databases} TEMPLATE {template}")
        return self.url(f"d{self.databases}")

    def close(self) -> None:
        if (self.folder / "data" / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def _somebody_else() -> str:
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
