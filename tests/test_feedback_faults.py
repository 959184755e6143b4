"""What goes wrong around a feedback store: killed programs, full and read-only disks, a lost server, old and newer stores."""

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
from contextlib import closing, contextmanager
from pathlib import Path
from uuid import uuid4

import numpy as np
import pandas as pd
import pytest
from test_feedback import CHECKLIST, CRITERIA, review

from pathloop.database import LAYOUT
from pathloop.feedback import FeedbackStore

V1 = Path(__file__).parent / "feedback_v1"
FORK = multiprocessing.get_context("fork")


def _write_until_killed(url, said):
    store = FeedbackStore(url)
    for number in range(100_000):
        event = review(number % 12, uuid=str(uuid4()), session=str(os.getpid()), client_seq=number)
        os.write(said, f"S {event['uuid']}\n".encode())
        store.record(event, CHECKLIST)
        os.write(said, f"A {event['uuid']}\n".encode())


def _killed_after(url, words, seconds):
    "What a writer had sent and what had been acknowledged when it was killed, so many words and seconds after it began."
    heard, said = os.pipe()
    writer = FORK.Process(target=_write_until_killed, args=(url, said))
    writer.start()
    os.close(said)
    lines = []
    with os.fdopen(heard) as pipe:
        lines += [pipe.readline() for _ in range(words)]
        time.sleep(seconds)
        os.kill(writer.pid, signal.SIGKILL)
        lines += pipe.readlines()
    writer.join(30)
    assert writer.exitcode == -signal.SIGKILL
    return [{line[2:-1] for line in lines if line.startswith(which)} for which in "SA"]


def test_killed_at_twenty_moments_every_acknowledged_event_is_there_once(store_url):
    FeedbackStore(store_url).close()
    chance, sent, acknowledged = random.Random(0), set(), set()
    for _ in range(20):
        sent_now, acknowledged_now = _killed_after(store_url, chance.randint(1, 30), chance.uniform(0, 0.01))
        sent |= sent_now
        acknowledged |= acknowledged_now
    with closing(FeedbackStore(store_url)) as store:
        uuids = store.events()["uuid"]
        assert acknowledged and acknowledged <= set(uuids) <= sent
        assert uuids.is_unique and set(store.check()["fault"]) == {""}
        assert len(sent) - len(acknowledged) <= 20  # One in flight at each kill; may be there or not


@contextmanager
def small_disk(size):
    "A file system of so many bytes; skips where one may not be mounted."
    with tempfile.TemporaryDirectory() as folder:
        if not shutil.which("mount") or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True).returncode:
            pytest.skip("a small file system cannot be mounted here (needs root)")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_said_and_costs_nothing():
    with small_disk("2m") as folder, closing(FeedbackStore(folder / "feedback.db")) as store:
        saved = [store.record(review(), CHECKLIST)]
        filler = folder / "filler"
        with filler.open("wb", buffering=0) as file, pytest.raises(OSError):
            while True:
                file.write(bytes(4096))
        refused = review(1, uuid=str(uuid4()), comment="x" * 100_000)
        with pytest.raises(OSError, match="could not be saved.*full.*Send it again"):
            store.record(refused, CHECKLIST)
        filler.unlink()
        saved.append(store.record(refused, CHECKLIST))
        assert sorted(store.events()["uuid"]) == sorted(saved) and set(store.check()["fault"]) == {""}


def _write_with_a_limit(path, said):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    store = FeedbackStore(path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    acknowledged = []
    try:
        for number in range(1000):
            acknowledged.append(store.record(review(number % 12, comment="x" * 2000), CHECKLIST))
    except Exception as error:
        os.write(said, json.dumps([type(error).__name__, str(error), acknowledged]).encode())
    os._exit(0)


def test_a_file_that_may_not_grow_is_said_and_costs_nothing(tmp_path):
    heard, said = os.pipe()
    writer = FORK.Process(target=_write_with_a_limit, args=(tmp_path / "feedback.db", said))
    writer.start()
    os.close(said)
    with os.fdopen(heard) as pipe:
        kind, message, acknowledged = json.loads(pipe.read())
    writer.join(30)
    assert kind == "OSError" and "could not be saved" in message and acknowledged
    with closing(FeedbackStore(tmp_path / "feedback.db")) as store:
        assert set(acknowledged) == set(store.events()["uuid"]) and set(store.check()["fault"]) == {""}


@contextmanager
def as_nobody():
    "Without root's right to write everywhere."
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_read_only_store_is_said():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        FeedbackStore(folder / "feedback.db").close()
        (folder / "feedback.db").chmod(0o444)
        folder.chmod(0o555)
        with as_nobody(), pytest.raises(OSError, match="url must be a feedback store that can be opened.*(read-?only|unable to open)"):
            FeedbackStore(folder / "feedback.db")
        folder.chmod(0o755)


def test_a_lost_server_is_said_and_costs_nothing(postgresql):
    with closing(FeedbackStore(postgresql.new_database(), timeout=5)) as store:
        saved = [store.record(review(), CHECKLIST)]
        refused = review(1, uuid=str(uuid4()))
        postgresql.stop("immediate")
        try:
            with pytest.raises(OSError, match="could not be (saved|read).*"):
                store.record(refused, CHECKLIST)
            with pytest.raises(OSError, match="could not be read"):
                store.events()
        finally:
            postgresql.start()
        saved.append(store.record(refused, CHECKLIST))
        store.record(refused, CHECKLIST)
        assert sorted(store.events()["uuid"]) == sorted(saved) and set(store.check()["fault"]) == {""}


def test_a_server_that_was_started_anew_meanwhile_is_not_noticed(postgresql, monkeypatch):
    monkeypatch.setattr("pathloop.database._IDLE", 0.0)
    with closing(FeedbackStore(postgresql.new_database())) as store:
        store.record(review(), CHECKLIST)
        postgresql.stop("fast")
        postgresql.start()
        store.record(review(1), CHECKLIST)
        assert len(store.events()) == 2


def test_a_server_that_is_not_there():
    with pytest.raises(OSError, match="can be opened; postgresql.*ana:\\*\\*\\*@127.0.0.1:1/x"):
        FeedbackStore("postgresql://ana:secret@127.0.0.1:1/x", timeout=2)


def test_who_waits_too_long_is_told(store_url):
    with closing(FeedbackStore(store_url)) as slow, closing(FeedbackStore(store_url, timeout=1)) as store:
        event = review(session="both", client_seq=0)
        with slow.writing() as connection:
            slow.serialise(connection, "both")
            with pytest.raises(OSError, match="could not be saved.*(locked|lock timeout)"):
                store.record(event, CHECKLIST)
        store.record(event, CHECKLIST)
        assert len(store.events()) == 1


def v1_store(folder):
    path = folder / "feedback.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript((V1 / "store.sql").read_text(encoding="utf-8"))
    return path


def layout_of(path):
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT version_num FROM alembic_version").fetchone()[0]


def test_a_store_of_the_first_release_opens_and_goes_on(tmp_path):
    path = v1_store(tmp_path)
    with closing(FeedbackStore(path)) as store:
        assert len(store.events()) == 6 and layout_of(path) == LAYOUT
        assert store.verdicts("human")["verdict"].tolist() == ["plausible", "implausible"]
        store.record(review(session="browser-1", client_seq=9), CHECKLIST)
        assert store.check().loc["browser-1", ["events", "chained", "fault"]].tolist() == [5, 1, ""]
        assert store.import_csv(V1 / "events.csv") == 0
        with pytest.raises(ValueError, match="release 0.1 did not keep"):
            store.checklist(store.events()["checklist_hash"].iloc[0][::-1])
    with closing(FeedbackStore(path)) as again:
        assert len(again.events()) == 7


def test_events_of_the_first_release_come_in(store_url):
    with closing(FeedbackStore(store_url)) as store:
        assert [store.import_csv(V1 / "events.csv") for _ in range(2)] == [6, 0]
        assert store.verdicts("human")["verdict"].tolist() == ["plausible", "implausible"]


def test_a_migration_that_fails_leaves_the_old_store(tmp_path):
    path = v1_store(tmp_path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE worklist (mine TEXT)")
        before = connection.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()
    with pytest.raises(OSError, match="worklist already exists"):
        FeedbackStore(path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall() == before
        connection.execute("DROP TABLE worklist")
    assert len(FeedbackStore(path).events()) == 6


def _open_and_count(path, counts):
    with closing(FeedbackStore(path)) as store:
        counts.put(len(store.events()))


def test_programs_that_open_an_old_store_at_once(tmp_path):
    path, counts = v1_store(tmp_path), FORK.SimpleQueue()
    programs = [FORK.Process(target=_open_and_count, args=(path, counts)) for _ in range(4)]
    for program in programs:
        program.start()
    for program in programs:
        program.join(60)
    assert [program.exitcode for program in programs] == [0] * 4 and {counts.get() for _ in range(4)} == {6}


def test_an_empty_server_database_is_laid_out_and_a_newer_one_refused(postgresql):
    url = postgresql.new_database()
    with closing(FeedbackStore(url)) as store:
        store.record(review(), CHECKLIST)
        with store.writing() as connection:
            connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0099'")
    with pytest.raises(ValueError, match="layout 0099. Update pathloop"):
        FeedbackStore(url)


def test_migrations_and_tables_say_the_same(store_url):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from pathloop.database import tables

    with closing(FeedbackStore(store_url)) as store, store.reading() as connection:
        found = compare_metadata(MigrationContext.configure(connection), tables)
        assert [change for change in found if "alembic_version" not in str(change)] == []


def test_answers_to_an_older_checklist_stay_readable(store_url):
    from dataclasses import replace

    older = replace(CHECKLIST, version="0.9.0", criteria=CHECKLIST.criteria[:3], cell_types={kind: criteria[:3] for kind, criteria in CHECKLIST.cell_types.items()})
    with closing(FeedbackStore(store_url)) as store:
        store.record(review(0) | {"answers": dict.fromkeys(CRITERIA[:3], "yes")}, older)
        store.record(review(1), CHECKLIST)
        hashes = store.events().drop_duplicates("checklist_version").set_index("checklist_version")["checklist_hash"]
        assert store.checklist(hashes["0.9.0"]) == older and store.checklist(hashes["1.0.0"]) == CHECKLIST
        assert store.verdicts()["asked"].tolist() == ["peripheral-blood 0.9.0", "peripheral-blood 1.0.0"]
        assert store.verdicts()["granules"].tolist() == ["unsure", "yes"]
        assert list(store.verdicts(checklist=older).columns[:3]) == CRITERIA[:3] and len(store.verdicts(checklist=older)) == 1


@pytest.mark.parametrize("change", [{"verdict": "plausible"}, {"comment": "never said"}, {"answers": "{}"}])
def test_a_forged_row_shows(tmp_path, change):
    with closing(FeedbackStore(tmp_path / "feedback.db")) as store:
        uuids = [store.record(review(i, failed=["granules"], session="s", client_seq=i), CHECKLIST) for i in range(4)]
        (column, value), = change.items()
        with closing(sqlite3.connect(store.path)) as forger:
            forger.execute("DROP TRIGGER event_no_update")
            forger.execute(f"UPDATE event SET {column} = ? WHERE uuid = ?", (value, uuids[2]))
            forger.commit()
        assert uuids[2] in store.check().loc["s", "fault"]


def test_a_removed_row_shows(tmp_path):
    with closing(FeedbackStore(tmp_path / "feedback.db")) as store:
        uuids = [store.record(review(i, session="s", client_seq=i), CHECKLIST) for i in range(4)]
        with closing(sqlite3.connect(store.path)) as forger:
            forger.execute("DROP TRIGGER event_no_delete")
            forger.execute("DELETE FROM event WHERE uuid = ?", (uuids[1],))
            forger.commit()
        assert uuids[2] in store.check().loc["s", "fault"]


def test_ten_thousand_events_are_read_in_seconds(tmp_path):
    n = 10_000
    images = np.random.default_rng(0).uniform(-1, 1, (n, 3, 2, 2)).astype(np.float32)
    answers = pd.DataFrame({name: ["yes"] * n for name in CRITERIA})
    with closing(FeedbackStore(tmp_path / "feedback.db")) as store:
        store.record_reviews(images, np.zeros(n, int), ["lymphocyte"], answers, "Ana", "simulated", "g", CHECKLIST)
        start = time.perf_counter()
        assert len(store.verdicts()) == n
        assert time.perf_counter() - start < 10
