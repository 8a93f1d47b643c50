"""A search whose study lies in PostgreSQL: against a server of the test's own, with its own data folder and port."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_trials import do_all, experiment, finish

from rio_bench.errors import UserError
from rio_bench.records import ResultFolder
from rio_bench.search import Search

psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'psycopg[binary]'")
PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))  # Debian's, one folder a version
PASSWORD = "hunter2-of-a-test"
TESTS = Path(__file__).parent


class Server:
    """A PostgreSQL server; it refuses to run as root, so root runs it as Debian's user postgres."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        folder.chmod(0o755)
        password = folder / "password"
        password.write_text(PASSWORD)
        if os.getuid() == 0:
            shutil.chown(folder, "postgres")
            shutil.chown(password, "postgres")
        self._run("initdb", "-D", self.data, "-U", "rio", "-A", "scram-sha-256", f"--pwfile={password}", "--no-sync")

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._run("pg_ctl", "-D", self.data, "-w", "-l", self.folder / "log", "-o", options, "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", self.data, "-m", "immediate", "stop")

    def url(self, database: str, password: str = PASSWORD) -> str:
        return f"postgresql://rio:{password}@127.0.0.1:{self.port}/{database}"

    def query(self, database: str, statement: str) -> list[tuple[object, ...]]:
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            answer = connection.execute(statement)
            return answer.fetchall() if answer.description else []

    def _run(self, program: str, *arguments: object) -> None:
        user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        command = [*user, str(PROGRAMS[-1] / program), *map(str, arguments)]
        # Not captured: the server would keep the pipe open.
        with open(self.folder / "output", "w+") as output:
            status = subprocess.run(command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
            output.seek(0)
            assert status.returncode == 0, output.read()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    if not PROGRAMS:
        pytest.skip("no PostgreSQL server here: apt-get install postgresql")
    if os.getuid() == 0 and "postgres" not in {user.pw_name for user in pwd.getpwall()}:
        pytest.skip("PostgreSQL refuses to run as root, and there is no user postgres")
    folder = Path(tempfile.mkdtemp(prefix="rio-postgresql-"))  # pytest's own folders are closed to other users
    server = Server(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


@pytest.fixture
def database(server: Server) -> str:
    name = f"team_{uuid.uuid4().hex[:8]}"
    server.query("postgres", f"CREATE DATABASE {name}")
    return name


def harness(root: Path, url: str, trials: int) -> subprocess.Popen[bytes]:
    code = (
        f"import sys; sys.path.insert(0, {str(TESTS)!r})\n"
        "from pathlib import Path; from fake_trials import experiment, harness\n"
        "of = experiment(trials=int(sys.argv[3]), sampler='RandomSampler', storage=sys.argv[2])\n"
        "harness(Path(sys.argv[1]), of)"
    )
    root.mkdir(exist_ok=True)
    return subprocess.Popen([sys.executable, "-c", code, str(root), url, str(trials)])


def test_a_search_with_its_study_in_postgresql(
    server: Server, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = ResultFolder(tmp_path / "banks")
    of = experiment(trials=5, storage=server.url(database))
    search = Search(of, results)
    runs = do_all(search, results, of)
    search.write()
    stored = results.read_search()
    assert stored is not None and [trial.run for trial in stored.trials] == [run.name for run in runs]
    assert not results.study_journal.exists()
    assert server.query(database, "SELECT count(*) FROM trials WHERE state = 'COMPLETE'") == [(5,)]
    again = Search(of, results)
    assert again.is_exhausted() and again.planned() == runs
    # The password is nowhere but in the experiment file.
    shown = f"postgresql://rio:***@127.0.0.1:{server.port}/{database}"
    assert stored.storage == shown
    assert f"in a browser: optuna-dashboard '{shown}' (pip install optuna-dashboard)" in again.summary()
    for file in results.root.rglob("*"):
        assert not file.is_file() or PASSWORD not in file.read_text(errors="replace")
    assert PASSWORD not in "\n".join(again.summary())
    # Nor need it be there.
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    assert Search(
        experiment(trials=5, storage=server.url(database).replace(f":{PASSWORD}", "")), results
    ).is_exhausted()


def test_a_wrong_password_and_a_missing_database_are_told_in_one_line(
    server: Server, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rio_bench.study_storage.OPENING_ATTEMPTS", 1)
    wrong = {
        'password authentication failed for user "rio"': server.url(database, password="secret-and-wrong"),
        'database "nowhere" does not exist': server.url("nowhere"),
    }
    for message, url in wrong.items():
        with pytest.raises(UserError, match=message) as error:
            Search(experiment(storage=url), ResultFolder(tmp_path / "banks"))
        line = str(error.value)
        assert len(line.splitlines()) == 1 and PASSWORD not in line and "secret-and-wrong" not in line


def test_harnesses_with_folders_of_their_own_share_the_trials(server: Server, database: str, tmp_path: Path) -> None:
    """Started together on an empty database: both make its tables."""
    roots = [tmp_path / "here", tmp_path / "there"]
    both = [harness(root, server.url(database), trials=8) for root in roots]
    assert [one.wait(timeout=90) for one in both] == [0, 0]
    starts = [name for root in roots for name in (root / "starts").read_text().split()]
    assert Counter(starts).most_common(1)[0][1] == 1
    # Trials are counted without a lock between the machines: at most one too many.
    assert 8 <= len(starts) <= 9
    assert server.query(database, "SELECT count(DISTINCT study_name) FROM studies") == [(1,)]
    assert server.query(database, "SELECT DISTINCT state::text FROM trials") == [("COMPLETE",)]


def test_harnesses_on_one_folder_share_the_trials(server: Server, database: str, tmp_path: Path) -> None:
    both = [harness(tmp_path / "banks", server.url(database), trials=8) for _ in range(2)]
    assert [one.wait(timeout=90) for one in both] == [0, 0]
    starts = (tmp_path / "banks" / "starts").read_text().split()
    assert len(starts) == len(set(starts)) == 8


def test_a_server_that_goes_away_is_told_and_the_search_goes_on_when_it_is_back(
    server: Server, database: str, tmp_path: Path
) -> None:
    results = ResultFolder(tmp_path / "banks")
    of = experiment(trials=3, storage=server.url(database))
    search = Search(of, results)
    run = search.ask()
    assert run is not None
    record = finish(run, results, of)
    calls: list[Callable[[], object]] = [search.ask, lambda: search.tell(run.name, "finished", record), search.planned]
    server.stop()
    try:
        for call in calls:
            with pytest.raises(UserError, match=r"^postgresql://rio:\*\*\*@") as error:
                call()
            assert len(str(error.value).splitlines()) == 1 and PASSWORD not in str(error.value)
    finally:
        server.start()
    search.tell(run.name, "finished", record)  # the same harness, on a new connection
    server.stop()
    server.start()
    assert len(do_all(search, results, of)) == 2  # that it was away while nobody asked goes unnoticed
