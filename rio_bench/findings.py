"""What a search found: the best trials, what mattered, and the lines that tell it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Literal

import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from rio_bench.records import StoredSearch, StoredTrial
from rio_bench.search_config import SearchConfig
from rio_bench.study_storage import RUN

TRIALS_FOR_IMPORTANCE = 20  # finished ones: PED-ANOVA compares the best tenth with the rest
FRONT_SHOWN = 10  # trials of a Pareto front

State = Literal["running", "finished", "pruned", "failed"]
STATES: Mapping[TrialState, State] = {
    TrialState.WAITING: "running",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


def stored_search(study: Study, config: SearchConfig, place: str) -> StoredSearch:
    """A study as plain data; `place` names its storage."""
    return StoredSearch(
        study=study.study_name,
        storage=place,
        sampler=str(config.sampler),
        objectives=dict.fromkeys(config.objectives, "maximize"),
        trials=tuple(_stored(trial, config) for trial in study.get_trials(deepcopy=False)),
        best=tuple(trial.number for trial in best_trials(study)),
        importance=importance(study, config.objectives),
    )


def best_trials(study: Study) -> list[FrozenTrial]:
    """The best trial, or the Pareto front by falling first objective; the first of those that share a run."""
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        return []
    best = [study.best_trial] if len(study.directions) == 1 else study.best_trials
    by_run: dict[str, FrozenTrial] = {}
    for trial in sorted(best, key=lambda trial: trial.number):
        by_run.setdefault(trial.user_attrs[RUN], trial)
    return sorted(by_run.values(), key=lambda trial: -trial.values[0])


def importance(study: Study, objectives: list[str]) -> dict[str, dict[str, float]]:
    """Objective -> parameter -> share of 1, the largest first; empty with too few finished trials."""
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(finished) < TRIALS_FOR_IMPORTANCE:
        return {}
    shares = {}
    for index, objective in enumerate(objectives):

        def negated(trial: FrozenTrial, index: int = index) -> float:
            return -trial.values[index]

        # Negated: given a target, Optuna's evaluator takes low values for the good ones.
        if len({trial.values[index] for trial in finished}) > 1:
            shares[objective] = optuna.importance.get_param_importances(study, target=negated)
    return shares


def summary(study: Study, config: SearchConfig, label: Callable[[FrozenTrial], str], num_ended: int) -> list[str]:
    """Lines for the terminal; `label` names a trial's configuration as the tables do."""
    trials = study.get_trials(deepcopy=False)
    states = Counter(STATES[trial.state] for trial in trials if RUN in trial.user_attrs)
    counts = ", ".join(f"{number} {state}" for state, number in states.items()) or "none yet"
    lines = [f"search {study.study_name}: {num_ended} of {config.trials} trials ended (in the study: {counts})"]
    lines += _best_lines(study, config.objectives, label)
    shares_of = importance(study, config.objectives)
    for objective, shares in shares_of.items():
        told = ", ".join(f"{key} {share:.2f}" for key, share in shares.items())
        lines.append(f"importance for {objective}: {told}")
    if states["finished"] < TRIALS_FOR_IMPORTANCE:
        lines.append(f"importance of each parameter: from {TRIALS_FOR_IMPORTANCE} finished trials on")
    return lines


def _best_lines(study: Study, objectives: list[str], label: Callable[[FrozenTrial], str]) -> list[str]:
    best = best_trials(study)
    if not best:
        return ["best: no trial has finished"]

    def line(trial: FrozenTrial) -> str:
        values = ", ".join(f"{name} {value:.2f}" for name, value in zip(objectives, trial.values, strict=True))
        return f"{values}: {label(trial)} (trial {trial.number}, {trial.user_attrs[RUN]})"

    if len(objectives) == 1:
        return [f"best: {line(best[0])}"]
    more = [f"  and {len(best) - FRONT_SHOWN} more"] if len(best) > FRONT_SHOWN else []
    heading = f"Pareto front of {', '.join(objectives)}: {len(best)} trials"
    return [heading, *(f"  {line(trial)}" for trial in best[:FRONT_SHOWN]), *more]


def _stored(trial: FrozenTrial, config: SearchConfig) -> StoredTrial:
    finished = trial.state == TrialState.COMPLETE
    params: dict[str, Any] = {key: config.space[key].value_of(value) for key, value in trial.params.items()}
    return StoredTrial(
        number=trial.number,
        state=STATES[trial.state],
        run=trial.user_attrs.get(RUN),
        params=params,
        values=dict(zip(config.objectives, trial.values, strict=True)) if finished else None,
    )
