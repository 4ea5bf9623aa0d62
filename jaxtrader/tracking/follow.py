"""The process that uploads a run while it is trained: `python -m jaxtrader.tracking.follow`.

Another process, so that neither importing mlflow nor a server that hangs takes time from training,
and because it outlives a training that is killed and can say so. It ends when its standard input
does, and says what a person should know on its standard output.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from pathlib import Path

from jaxtrader.errors import JaxtraderError
from jaxtrader.outputs import OutputLayout
from jaxtrader.tracking.record import read_record, upload_command
from jaxtrader.tracking.store import prepare_process, waiting_for
from jaxtrader.tracking.upload import Upload

NOT_ALL = 3
"""Exit status: the store lacks something, and the person has been told so."""


def follow(
    layout: OutputLayout, name: str, session: int, every: float, ended: threading.Event
) -> bool:
    """Uploads what a run writes until `ended`; whether the store then has all of it.

    Args:
      session: of the run, which is followed; a later one has its own follower.
      every: seconds between two looks.
    """
    upload, told, failed, error = None, False, False, None
    while True:
        last = ended.is_set()  # asked before the files are read: nothing is written afterwards
        try:
            record = read_record(layout, name)
            if record.sessions != session:
                return True
            upload = upload or Upload(layout)
            upload.step(record, ended=last)
            error = None
            if not told:
                _say(f"MLflow: {upload.where_to_look}")
                told = True
        except JaxtraderError as problem:
            upload, error = None, problem
            if not (failed or last):
                _say(
                    f"warning: {error}. Training goes on. What is missing is sent when the store "
                    f"answers, or later by: {upload_command(layout, name)}"
                )
            failed = True
        if last:
            break
        ended.wait(every)
    if error is not None:
        _say(f"not all is in MLflow: {error}. Send it with: {upload_command(layout, name)}")
    return error is None


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # the training that would show it was killed
        print(text, flush=True)


def main() -> int:
    """Entry point: output folder, name and session of the run, seconds between two looks."""
    root, name, session, every = sys.argv[1:]
    prepare_process()
    if hasattr(os, "nice"):
        os.nice(10)  # training goes first
    ended = threading.Event()

    def wait_for_end() -> None:
        sys.stdin.buffer.read()
        ended.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    layout = OutputLayout(Path(root))
    with waiting_for(layout.upload_lock(name), "uploads this run"):
        return 0 if follow(layout, name, int(session), float(every), ended) else NOT_ALL


if __name__ == "__main__":
    sys.exit(main())
