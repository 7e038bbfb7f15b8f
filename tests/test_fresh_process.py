"""The helper that runs code in a process of its own tells what becomes of it."""

import signal

import pytest

from . import fresh_process

pytestmark = pytest.mark.skipif(not fresh_process.FORKS, reason="processes are not forked here, which is slow")


@pytest.mark.parametrize(
    ("code", "done"),
    [
        ("import sys, os; print('é', sys.argv, os.environ['WORD'])", (0, "é ['-c', 'one'] yes\n", "")),
        ("raise SystemExit", (0, "", "")),
        ("raise SystemExit(3)", (3, "", "")),
        ("raise SystemExit('why')", (1, "", "why\n")),
        ("import os; os.write(2, b'native'); os.abort()", (-signal.SIGABRT, "", "native")),
        ("import os; os.system('echo from a child')", (0, "from a child\n", "")),
    ],
)
def test_words_and_exit_codes(code: str, done: tuple[int, str, str]) -> None:
    assert fresh_process.run(code, "one", WORD="yes") == done


def test_errors_are_told() -> None:
    done = fresh_process.run("print('begun')\n1 / 0")
    assert (done.returncode, done.stdout) == (1, "begun\n")
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_what_does_not_end_is_ended() -> None:
    running = fresh_process.Running("import time; print('begun', flush=True); time.sleep(600)")
    with pytest.raises(AssertionError, match=r"has not ended after 0.5 seconds"):
        running.wait(0.5)
    assert running._process.exitcode == -signal.SIGKILL
