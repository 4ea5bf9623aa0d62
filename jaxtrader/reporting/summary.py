"""`summary.json` of a stage-5 run: what was run, on what, and what came of it.

The schema is `stage5_summary.schema.json` beside this file (JSON Schema 2020-12); its version goes
up whenever a key changes its meaning or goes away.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from importlib import resources
from typing import Any

import numpy as np

from jaxtrader.deployment import ExportedPolicy
from jaxtrader.errors import DataError, ExportError
from jaxtrader.evaluation.evaluate import Evaluation
from jaxtrader.evaluation.foresight import ForesightCeiling
from jaxtrader.gates import GateResult, alerts, check_gates
from jaxtrader.program import Program
from jaxtrader.provenance import git_commit, machine, versions
from jaxtrader.runs import TrainingRun, agent_name
from jaxtrader.telemetry import audit_warnings, episode_means

SCHEMA_VERSION = 1


def schema() -> dict[str, Any]:
    """The JSON Schema that every summary obeys."""
    text = (
        resources.files("jaxtrader.reporting")
        .joinpath("stage5_summary.schema.json")
        .read_text("utf-8")
    )
    return json.loads(text)


def strict(value: Any) -> Any:
    """Plain JSON values; numbers that are not finite become null."""
    if isinstance(value, dict):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def data_section(program: Program) -> dict[str, Any]:
    """Real or synthetic, sources with hashes, spans and splits."""
    dataset = program.dataset
    spans = {}
    for s, symbol in enumerate(dataset.symbols):
        stamps = dataset.timestamps[s].astype("M8[us]")
        spans[symbol] = {
            **dataset.provenance["symbols"][symbol],
            "splits": {
                name: {
                    "first_bar": int(first[s]),
                    "last_bar": int(last[s]),
                    "first_timestamp": f"{stamps[first[s]]}Z",
                    "last_timestamp": f"{stamps[last[s]]}Z",
                }
                for name, (first, last) in dataset.splits.items()
            },
        }
    return {
        "kind": dataset.provenance["kind"],
        "timeframe": dataset.timeframe,
        "fingerprint": dataset.fingerprint,
        "receptive_field": dataset.receptive_field,
        "feature_names": list(dataset.feature_names),
        "symbols": spans,
        "notes": list(dataset.provenance["notes"]),
    }


def training_section(run: TrainingRun, *, skipped: bool, extended_to: int | None) -> dict[str, Any]:
    """How long was trained, and how fast."""
    return {
        "skipped": skipped,
        "updates": run.update,
        "steps_per_seed": run.steps,
        "steps_per_update": run.program.learner.shape.steps_per_update,
        "block_length": run.program.learner.shape.block_length,
        "extended_to": extended_to,
        "vectorized_agents": run.program.placement.vectorize,
        "compile_seconds": run.compile_seconds,
        "train_seconds": run.train_seconds,
        "steps_per_second": run.steps_per_second,
    }


def agent_section(
    run: TrainingRun,
    s: int,
    k: int,
    evaluation: Evaluation,
    export: ExportedPolicy | ExportError | None,
    ceiling: ForesightCeiling | DataError | None,
) -> dict[str, Any]:
    """One agent: its checkpoint, gates, evaluation, audit and policy file.

    `export` and `ceiling` are an error where there could be none, and None where none was asked
    for.
    """
    program, symbol, seed = run.program, evaluation.symbol, evaluation.seed
    gates = check_gates(evaluation.metrics)
    updates, episodes = (  # empty where the tables are gone, or nothing has ended yet
        table[table["symbol"] == symbol] if len(table) else table
        for table in (run.journal.updates[seed].table, run.journal.episodes[seed].table)
    )
    late = episodes[episodes["update"] > 0.75 * run.update] if len(episodes) else episodes
    rescues = updates[updates["guard_triggered"].astype(bool)] if len(updates) else updates
    name = agent_name(program, symbol, seed)
    warnings = [*alerts(evaluation.metrics), *audit_warnings(evaluation.audit, episodes)]
    if not len(evaluation.trades) and not evaluation.episodes["closed_trades"].any():
        warnings.insert(
            0,
            f"it never traded: after {run.steps:,} steps the likeliest action is HOLD wherever it "
            "was evaluated. Train longer, or look for something to learn",
        )
    policy = export if isinstance(export, ExportedPolicy) else None
    if isinstance(export, ExportError):
        warnings.append(f"no policy was exported: {export}")
    if policy is not None and not policy.parity.passed:
        warnings.append("the exported policy does not agree with JAX: do not deploy it")
    exported = export is None or (policy is not None and policy.parity.passed)
    if name in run.halted():
        warnings.append(run.halted()[name])
    if isinstance(ceiling, DataError):
        warnings.append(f"no comparison with perfect foresight: {ceiling}")
        ceiling = None
    return {
        "symbol": symbol,
        "seed": seed,
        "passed": exported and all(gate.passed for gate in gates),
        "gates": [gate.to_dict() for gate in gates],
        "warnings": warnings,
        "checkpoint": {
            "update": int(run.best_update[s, k]),
            "validation_sharpe": float(run.best_sharpe[s, k]),
        },
        "halted": run.halted().get(name),
        "guard_rescues": [
            {"update": int(row["update"]), "steps": int(row["steps"])}
            for _, row in rescues.iterrows()
        ],
        "training_telemetry": episode_means(late) if len(late) else {},
        "evaluation": evaluation_section(evaluation, ceiling),
        "policy": None if policy is None else policy_section(policy),
    }


def evaluation_section(evaluation: Evaluation, ceiling: ForesightCeiling | None) -> dict[str, Any]:
    """Deterministic results on one split."""
    equity, benchmark = evaluation.equity, evaluation.benchmark
    exposure = (1.0 - evaluation.steps["cash"] / evaluation.steps["equity"]).clip(lower=0.0)
    return {
        "split": evaluation.split,
        "first_timestamp": equity.index[0].isoformat(),
        "last_timestamp": equity.index[-1].isoformat(),
        "bars": len(evaluation.steps),
        "ended_early": evaluation.ended_early,
        "total_return": float(equity.iloc[-1] / equity.iloc[0] - 1.0),
        "mean_exposure": float(exposure.mean()),
        "performance": evaluation.performance.to_dict(),
        "trades": len(evaluation.trades),
        "exits": {
            kind: int((evaluation.trades["exit"] == kind).sum())
            for kind in ("voluntary", "forced", "ended")
        },
        "buy_and_hold": {
            "total_return": float(benchmark.iloc[-1] / benchmark.iloc[0] - 1.0),
            "performance": evaluation.benchmark_performance.to_dict(),
        },
        "perfect_foresight": None if ceiling is None else foresight_section(evaluation, ceiling),
        "random_start_episodes": len(evaluation.episodes),
        "telemetry": evaluation.metrics,
        "full_split_telemetry": episode_means(evaluation.full_split),
        "reward_audit": evaluation.audit,
    }


def foresight_section(evaluation: Evaluation, ceiling: ForesightCeiling) -> dict[str, Any]:
    """What could have been earned on the same bars, and how much of it was."""
    at_least, at_most = ceiling.captured(evaluation)
    return {
        "attained_log_wealth": ceiling.attained,
        "bound_log_wealth": ceiling.bound,
        "captured_at_least": at_least,
        "captured_at_most": at_most,
    }


def policy_section(export: ExportedPolicy) -> dict[str, Any]:
    """The exported file and its parity with JAX."""
    parity = export.parity
    return {
        "path": str(export.path),
        "sha256": export.manifest.sha256,
        "parity": {
            "passed": parity.passed,
            "observations": parity.observations,
            "largest_logit_difference": parity.largest_logit_difference,
            "largest_value_difference": parity.largest_value_difference,
            "largest_scaled_value_difference": parity.largest_scaled_value_difference,
            "tolerance": parity.tolerance,
            "clear_actions": parity.clear_actions,
            "agreeing_actions": parity.agreeing_actions,
            "near_ties": parity.near_ties,
            "jax_absent": parity.jax_absent,
        },
    }


def build_summary(
    run: TrainingRun,
    evaluations: Sequence[Sequence[Evaluation]],
    exports: Sequence[Sequence[ExportedPolicy | ExportError | None]],
    ceilings: Sequence[ForesightCeiling | DataError | None],
    *,
    created: str,
    command: Sequence[str],
    skipped: bool,
    extended_to: int | None,
) -> dict[str, Any]:
    """The whole summary, strict JSON.

    A run passes when every agent passes every gate, and every policy agrees with JAX. Evaluations
    and exports are by symbol, then by seed; ceilings by symbol.
    """
    agents = [
        agent_section(run, s, k, evaluations[s][k], exports[s][k], ceilings[s])
        for s, k, *_ in run.agents
    ]
    return strict(
        {
            "schema": "jaxtrader/stage5-summary",
            "schema_version": SCHEMA_VERSION,
            "created": created,
            "command": list(command),
            "passed": all(agent["passed"] for agent in agents),
            "data": data_section(run.program),
            "config": run.program.config.to_dict(),
            "provenance": {
                "git_commit": git_commit(),
                "versions": versions(),
                "machine": machine(),
            },
            "training": training_section(run, skipped=skipped, extended_to=extended_to),
            "agents": agents,
        }
    )


def gate_results(agent: dict[str, Any]) -> list[GateResult]:
    """The gate results of one agent of a summary, as `jaxtrader.gates.gate_table` takes them."""
    return [
        GateResult(**{**gate, "value": math.nan if gate["value"] is None else gate["value"]})
        for gate in agent["gates"]
    ]
