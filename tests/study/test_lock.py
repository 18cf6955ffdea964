import json
import os
import socket
import subprocess
import sys
import time

import pytest

from tl_lightning.errors import UserError
from tl_lightning.study import lock
from tl_lightning.study.records import RecordStore

HOLDER = """
import sys, time
from tl_lightning.study.records import RecordStore
with RecordStore(sys.argv[1]).lock():
    print("held", flush=True)
    time.sleep(60)
"""

CONTENDER = """
import sys, time
from tl_lightning.errors import UserError
from tl_lightning.study.records import RecordStore
out, inside = sys.argv[1], sys.argv[1] + "/inside"
done = 0
while done < 20:
    try:
        with RecordStore(out).lock():
            open(inside, "x").close()
            time.sleep(0.001)
            import os; os.unlink(inside)
            done += 1
    except UserError:
        time.sleep(0.0005)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


@pytest.fixture(params=["system lock", "no system lock"])
def _system(request, monkeypatch):
    if request.param == "no system lock":
        monkeypatch.setattr(lock, "_system_lock", lambda descriptor: None)


@pytest.mark.usefixtures("_system")
def test_a_second_process_is_refused_in_one_line_until_the_first_is_killed(tmp_path, holder):
    with pytest.raises(UserError) as caught, RecordStore(tmp_path).lock():
        pass
    assert f"in use by process {holder.pid} on {socket.gethostname()} since" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="in use"):
        RecordStore(tmp_path).open({}, fresh=True)

    holder.kill()
    holder.wait()
    assert (tmp_path / "study.lock").exists()
    with RecordStore(tmp_path).lock():
        assert json.loads((tmp_path / "study.lock").read_text())["pid"] == os.getpid()
    assert not (tmp_path / "study.lock").exists()


@pytest.mark.usefixtures("_system")
def test_a_reused_process_number_is_no_owner(tmp_path):
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "start": "1"}
    (tmp_path / "study.lock").write_text(json.dumps(owner))
    with RecordStore(tmp_path).lock():
        pass


@pytest.mark.usefixtures("_system")
@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_lock_file_without_an_owner_is_taken(tmp_path, content):
    (tmp_path / "study.lock").write_text(content)
    with RecordStore(tmp_path).lock():
        pass


def test_a_lock_of_another_host_is_never_taken_over(tmp_path):
    (tmp_path / "study.lock").write_text(json.dumps({"pid": 1, "host": "elsewhere", "since": "2026-01-01 00:00:00"}))
    expected = "process 1 on elsewhere since 2026-01-01 00:00:00 .if that process is gone, remove .*study.lock"
    with pytest.raises(UserError, match=expected), RecordStore(tmp_path).lock():
        pass
    assert "elsewhere" in (tmp_path / "study.lock").read_text()


def test_a_lock_that_its_holder_removes_in_between_is_taken_anew(tmp_path, monkeypatch):
    system_lock, removed = lock._system_lock, []

    def leaves_at_this_moment(descriptor):
        if not removed:
            removed.append((tmp_path / "study.lock").unlink())
        return system_lock(descriptor)

    monkeypatch.setattr(lock, "_system_lock", leaves_at_this_moment)
    with RecordStore(tmp_path).lock():
        assert removed
        contender = subprocess.run(
            [sys.executable, "-c", HOLDER, tmp_path], capture_output=True, text=True, check=False
        )
        assert f"in use by process {os.getpid()}" in contender.stderr


def test_one_process_holds_it_once_but_a_store_may_nest(tmp_path):
    store = RecordStore(tmp_path)
    with store.lock():
        store.open({"study": "a"})
        with store.lock():
            pass
        with pytest.raises(UserError, match="this very process"), RecordStore(tmp_path).lock():
            pass
        assert (tmp_path / "study.lock").exists()
    with RecordStore(tmp_path).lock():
        pass


def test_children_do_not_keep_the_lock_of_a_killed_process(tmp_path):
    program = HOLDER.replace(
        'print("held", flush=True)', "import os; pid = os.fork() or time.sleep(60); print(pid, flush=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    try:
        process.kill()
        process.wait()
        with RecordStore(tmp_path).lock():
            pass
    finally:
        os.kill(child, 9)


def test_contenders_are_never_inside_together(tmp_path):
    started = time.perf_counter()
    processes = [subprocess.Popen([sys.executable, "-c", CONTENDER, tmp_path]) for _ in range(3)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0, 0]
    assert time.perf_counter() - started < 60
