"""jaxtrader: what is done with data and runs from the command line.

Training itself is python -m experiments.stage5. Exit status: 0 when all was done, 2 on bad input
or when something could not be done, 130 when interrupted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from jaxtrader.cli.console import make_console
from jaxtrader.cli.data import data
from jaxtrader.errors import JaxtraderError
from jaxtrader.outputs import OutputLayout

app = tyro.extras.SubcommandApp()
app.command(data, name="data", help="From files of any vendor to bars that can be trusted.")


@app.command(name="upload-runs")
def upload_runs(
    output_dir: Annotated[Path, tyro.conf.Positional] = Path(),
    runs: tuple[str, ...] = (),
) -> int:
    """Upload runs to MLflow: what they have on disk and the store does not have yet.

    The store is the one that MLFLOW_TRACKING_URI names, such as http://localhost:5000, or else
    OUTPUT_DIR/mlflow.db, which `mlflow ui --backend-store-uri sqlite:///OUTPUT_DIR/mlflow.db`
    shows. MLFLOW_EXPERIMENT_NAME names the experiment. Needs mlflow: pip install -e '.[tracking]'
    in the checkout.

    Uploading twice changes nothing, and an upload that was interrupted goes on where it stopped.

    Args:
      output_dir: The --output-dir of the training.
      runs: Names of single runs, as in OUTPUT_DIR/logs/stage5/runs. Default: all of them.
    """
    from jaxtrader.tracking.record import run_names
    from jaxtrader.tracking.store import prepare_process
    from jaxtrader.tracking.upload import upload_once

    prepare_process()
    console, failed = make_console(), False
    layout = OutputLayout(output_dir)
    for name in run_names(layout, runs):
        with console.status(f"uploading {name}"):
            try:
                said = upload_once(layout, name)
            except JaxtraderError as error:
                failed = True
                said = f"not all is in MLflow: {error}"
        console.print(f"{name}: {said}", markup=False, highlight=False, soft_wrap=True)
    return 2 if failed else 0


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    errors = Console(stderr=True)
    try:
        return app.cli(prog="jaxtrader", description=__doc__, args=argv)
    except KeyboardInterrupt:
        errors.print("interrupted; the same command goes on where it stopped")
        return 130
    except JaxtraderError as error:
        errors.print(f"error: {error}", markup=False, soft_wrap=True)
        return 2
    except OSError as error:  # wherever the disk fails that nobody expected it to
        remedy = "check the path, its permissions and the free space"
        errors.print(f"error: {error}; {remedy}", markup=False, soft_wrap=True)
        return 2
