"""Where a run's files lie under its output folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jaxtrader.data.layout import check_symbol


@dataclass(frozen=True)
class OutputLayout:
    """Paths below `root`.

    Raises:
      DataError: from what takes a symbol, for one that could not be the name of one folder.
    """

    root: Path

    def agents(self, symbol: str) -> Path:
        """Folder of all agents of one symbol."""
        return self.root / "models" / "rl" / "symbol_agents" / check_symbol(symbol)

    def checkpoints(self, symbol: str, seed: int) -> Path:
        """Folder of one agent's Orbax checkpoints."""
        return self.agents(symbol) / f"seed_{seed}"

    def policy(self, symbol: str, seed: int) -> Path:
        """The exported TorchScript policy of one agent."""
        return self.agents(symbol) / f"policy_seed_{seed}.pt"

    def policy_files(self, symbol: str, seed: int) -> tuple[Path, Path]:
        """The exported policy and its manifest."""
        policy = self.policy(symbol, seed)
        return policy, policy.with_name(f"{policy.name}.manifest.json")

    def logs(self, seed: int) -> Path:
        """Folder of one seed's tables."""
        return self.root / "logs" / "stage5" / str(seed)

    def lock(self, seed: int) -> Path:
        """Held while one seed is trained: its tables are one process's to write."""
        return self.root / "logs" / "stage5" / f".{seed}.lock"

    def telemetry(self, seed: int) -> Path:
        """One row per training episode."""
        return self.logs(seed) / "telemetry.csv"

    def updates(self, seed: int) -> Path:
        """One row per update."""
        return self.logs(seed) / "updates.csv"

    def evaluation(self, seed: int, split: str) -> Path:
        """One row per evaluation episode."""
        return self.logs(seed) / f"evaluation_{split}.csv"

    def run_name(self, seed: int) -> Path:
        """Which run the tables of one seed are of: its name."""
        return self.logs(seed) / "run.txt"

    @property
    def runs(self) -> Path:
        """Folder of the descriptions of all runs."""
        return self.root / "logs" / "stage5" / "runs"

    def run_record(self, name: str) -> Path:
        """What a run says of itself."""
        return self.runs / name / "run.json"

    def run_lock(self, name: str) -> Path:
        """Held by the process that keeps the run's description."""
        return self.runs / name / ".run.lock"

    def upload_lock(self, name: str) -> Path:
        """Held by the process that uploads the run."""
        return self.runs / name / ".upload.lock"

    def report(self, timestamp: str) -> Path:
        """Folder of one report."""
        return self.root / "reports" / "stage5_validation" / timestamp
