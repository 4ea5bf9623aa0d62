"""The stage-5 command, telling another process through a pipe what it is doing: a test kills it.

On entering a phase it writes the phase's name and a newline, on leaving the name of the one around
it. Policies are not exported, nor is torch looked for: that takes longest, and nobody kills it.
"""

import os
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import jax

from experiments import stage5
from jaxtrader import checkpoints, training
from jaxtrader.checkpoints import AgentCheckpoints
from jaxtrader.program import Program


def run(tells: Connection, errors: Path, arguments: list[str]) -> None:
    """Ends the process with the command's exit status.

    Args:
        tells: where it says what it is doing.
        errors: file for what it prints on standard error; what it prints otherwise is lost.
        arguments: of the command.
    """
    jax.config.update("jax_platforms", "cpu")
    for descriptor, name in ((1, os.devnull), (2, errors)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), descriptor)
    around = ["start"]

    def tell() -> None:
        os.write(tells.fileno(), around[-1].encode() + b"\n")

    def phase(owner, function: str, name: str) -> None:
        original = getattr(owner, function)

        def told(*args, **kwargs):
            around.append(name)
            tell()
            try:
                return original(*args, **kwargs)
            finally:
                around.pop()
                tell()

        setattr(owner, function, told)

    phase(stage5, "start_run", "begin")
    phase(stage5, "restore_run", "restore")
    phase(stage5, "train", "loop")
    phase(Program, "run_updates", "compute")
    phase(training, "_validate", "validate")
    phase(training, "record_updates", "journal")
    phase(AgentCheckpoints, "save", "save")
    phase(checkpoints, "write_whole", "list")
    phase(AgentCheckpoints, "_delete", "remove")
    phase(stage5, "evaluate_agents", "evaluate")
    phase(stage5, "write_reports", "report")
    stage5.require_torch = lambda: None
    stage5.export_agents = lambda run, *arguments: [
        [None for _ in run.seeds] for _ in run.program.dataset.symbols
    ]
    sys.exit(stage5.main(arguments))
