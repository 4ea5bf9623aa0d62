"""Where a run's files lie under its output folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class OutputLayout:
    """Paths below `root`."""

    root: Path

    def checkpoints(self, symbol: str, seed: int) -> Path:
        """Folder of one agent's Orbax checkpoints."""
        return self.root / "models" / "rl" / "symbol_agents" / symbol / f"seed_{seed}"

    def policy(self, symbol: str, seed: int) -> Path:
        """The exported TorchScript policy of one agent."""
        return self.root / "models" / "rl" / "symbol_agents" / symbol / f"policy_seed_{seed}.pt"

    def policy_files(self, symbol: str, seed: int) -> tuple[Path, Path]:
        """The exported policy and its manifest."""
        policy = self.policy(symbol, seed)
        return policy, policy.with_name(f"{policy.name}.manifest.json")

    def logs(self, seed: int) -> Path:
        """Folder of one seed's tables."""
        return self.root / "logs" / "stage5" / str(seed)

    def telemetry(self, seed: int) -> Path:
        """One row per training episode."""
        return self.logs(seed) / "telemetry.csv"

    def updates(self, seed: int) -> Path:
        """One row per update."""
        return self.logs(seed) / "updates.csv"

    def evaluation(self, seed: int, split: str) -> Path:
        """One row per evaluation episode."""
        return self.logs(seed) / f"evaluation_{split}.csv"

    def report(self, timestamp: str) -> Path:
        """Folder of one report."""
        return self.root / "reports" / "stage5_validation" / timestamp
