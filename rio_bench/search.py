"""The trials of a search: Optuna is asked for configurations and told how their runs ended.

The run folders are the truth, the study an index of them: what they hold is taken over when a search is opened, so that
a deleted study, or the new one of a changed experiment file, starts from every result that fits it.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from pydantic import ValidationError

from rio_bench import findings
from rio_bench.config import Experiment
from rio_bench.files import RecordError
from rio_bench.plan import PlannedRun, trial_planner
from rio_bench.records import Record, ResultFolder, columns
from rio_bench.samplers import make_pruner, make_sampler, quiet
from rio_bench.strict import explain
from rio_bench.study_storage import (
    FOLDER,
    REFUSED,
    RUN,
    StudyLock,
    dashboard_command,
    errors_told,
    masked,
    open_database,
    open_journal,
)
from rio_bench.takeover import find_runs, study_name, was_pruned

REFUSALS_IN_A_ROW = 100  # combinations that no run can have, before the search is over


class Search:
    """The trials of one experiment's search, of all harnesses on its result folder.

    Every method may raise UserError, one line, where the study cannot be read or written. A trial whose run is going on
    when its harness ends stays open, and is given out again by the next.
    """

    def __init__(self, experiment: Experiment, results: ResultFolder) -> None:
        """Open the study, or make it."""
        assert experiment.search is not None
        self._experiment, self._config, self._results = experiment, experiment.search, results
        self._plan_trial = trial_planner(experiment)
        self._runs: dict[int, list[PlannedRun]] = {}  # by the trial's number: its base run if there is one, its run
        self._given: set[str] = set()  # names of runs that this harness has and that have not ended
        self._refusals, self._last_refusal = 0, ""
        self._written: list[TrialState] | None = None  # the trials' states in search.json
        url = self._config.storage.get_secret_value() if self._config.storage else None
        self._place = masked(url) if url else str(results.study_journal)
        with errors_told(self._place):
            results.root.mkdir(parents=True, exist_ok=True)
        self._lock = StudyLock(results.study_lock, results.study_journal)
        with self._opened():
            self._folder = self._lock.content(uuid.uuid4().hex) if url else ""
            self._open(url)
            self._take_over()
        self.write()

    def planned(self) -> list[PlannedRun]:
        """The runs of all trials so far without duplicates, base runs first."""
        with self._opened():
            runs: dict[str, PlannedRun] = {}
            for trial in self._own_trials():
                for run in self._runs_of(trial):
                    if run.name not in runs or not run.is_base:
                        runs[run.name] = run
            return sorted(runs.values(), key=lambda run: not run.is_base)

    def ask(self) -> PlannedRun | None:
        """The next run to do: one that a dead harness left, else a new trial's; None: none to give out now."""
        with self._opened():
            self._settle()
            run = self._left_behind()
            while run is None and self._has_room() and not self._is_stuck():
                run = self._new_trial()
            if run is not None:
                self._given.add(run.name)
            return run

    def is_exhausted(self) -> bool:
        """Whether as many trials as asked for have ended; those of other result folders are theirs to end."""
        with self._opened():
            if self._given or self._redo or any(trial.state == TrialState.RUNNING for trial in self._own_trials()):
                return False
            return self._is_stuck() or not self._has_room()

    def report(self, name: str, iteration: int, values: dict[str, float | None]) -> bool:
        """Hand on an intermediate evaluation of a run; True: it is to be pruned now."""
        value = values.get(self._config.objectives[0])
        if len(self._config.objectives) > 1 or value is None:
            return False
        with self._opened():
            prune = False
            for frozen in self._open_trials(name):
                trial = optuna.trial.Trial(self._study, frozen._trial_id)
                trial.report(value, iteration)  # of what a resumed run repeats, Optuna keeps the first
                prune = prune or bool(trial.should_prune())
            return prune

    def tell(self, name: str, how: Literal["finished", "failed", "pruned"], record: Record | None = None) -> str | None:
        """Hand on how a run ended, with its record where it finished; a line where something is worth telling."""
        with self._opened():
            self._given.discard(name)
            if how != "finished":
                for trial in self._open_trials(name):
                    self._study.tell(trial.number, state=TrialState.PRUNED if how == "pruned" else TrialState.FAIL)
                return None
            assert record is not None
            lines = [self._finish(trial, record) for trial in self._open_trials(name)] or [self._outdated(record)]
            return next(filter(None, lines), None)

    def write(self) -> None:
        """Write search.json, where a trial has begun or ended since it was written last."""
        with self._opened():
            states = [trial.state for trial in self._trials()]
            if states == self._written:
                return
            search = findings.stored_search(self._study, self._config, self._place)
        self._results.write_search(search)
        self._written = states

    def summary(self) -> list[str]:
        """What was found, and how to look at it."""
        with self._opened():
            num_ended = sum(map(self._has_ended, self._trials()))
            lines = findings.summary(self._study, self._config, self._label, num_ended)
        if self._is_stuck():
            lines.append(
                f"the search is over: no run can have {self._refusals} combinations in a row ({self._last_refusal})"
            )
        if self._set_aside is not None:
            lines.append(f"{self._place} was damaged: kept as {self._set_aside}, rebuilt from the run folders")
        return [*lines, f"in a browser: {dashboard_command(self._place)} (pip install optuna-dashboard)"]

    # Opening

    @contextmanager
    def _opened(self) -> Iterator[None]:
        """The study to ourselves; what its storage raises as one line; Optuna silent."""
        with quiet(), errors_told(self._place), self._lock:
            yield

    def _open(self, url: str | None) -> None:
        self._set_aside = None
        storage: Any
        if url is None:
            storage, self._set_aside = open_journal(self._results.study_journal, self._lock)
        else:
            storage = open_database(url)
        name = study_name(self._experiment)
        if name not in optuna.get_all_study_names(storage):
            directions = [StudyDirection.MAXIMIZE] * len(self._config.objectives)
            optuna.create_study(storage=storage, study_name=name, directions=directions, load_if_exists=True)
        sampler = make_sampler(self._config.sampler, self._experiment.search_points[0].seed)
        pruner = make_pruner(self._config.pruner)
        self._study = optuna.load_study(storage=storage, study_name=name, sampler=sampler, pruner=pruner)

    def _take_over(self) -> None:
        """Let the study know what the run folders hold, and note what is to be done again."""
        self._settle()
        own = [trial for trial in self._own_trials() if RUN in trial.user_attrs]
        failed = [trial for trial in own if trial.state == TrialState.FAIL]
        known = {trial.user_attrs[RUN] for trial in own if trial.state != TrialState.FAIL}
        # A failed run is tried again by the same command, as in a grid; failures from before do not count as ended.
        self._failed_before = {trial.number for trial in failed}
        self._again = {trial.user_attrs[RUN]: trial.params for trial in failed if trial.user_attrs[RUN] not in known}
        # A run folder that was deleted, or whose record is torn, is done again.
        finished = [self._runs_of(trial)[-1:] for trial in own if trial.state == TrialState.COMPLETE]
        self._redo = {run.name: run for runs in finished for run in runs if self._record_of(run) is None}
        for found in find_runs(self._experiment, self._results, known):
            if found.record is None and found.pruned is None:
                self._again.setdefault(found.name, found.params)
                continue
            self._again.pop(found.name, None)
            values = self._values(found.record) if found.record else {}
            if None in values.values():
                continue
            trial = create_trial(
                state=TrialState.COMPLETE if found.record else TrialState.PRUNED,
                values=[value for value in values.values() if value is not None] or None,
                params=found.params,
                distributions=self._config.distributions(),
                intermediate_values=found.pruned,
                user_attrs={RUN: found.name} | ({FOLDER: self._folder} if self._folder else {}),
            )
            self._study.add_trial(trial)

    # Asking

    def _settle(self) -> None:
        """Tell the study of runs that ended without their harness telling it."""
        for trial in self._open_trials():
            if trial.user_attrs.get(RUN) in self._given:
                continue
            runs = self._runs_of(trial)
            if not runs:  # its harness died while it asked: we hold the lock
                self._study.tell(trial.number, state=TrialState.FAIL)
                continue
            record = self._record_of(runs[-1])
            if record is not None:
                self._finish(trial, record)
            elif was_pruned(self._results.run(runs[-1].name), self._experiment) and self._is_free(runs[-1]):
                self._study.tell(trial.number, state=TrialState.PRUNED)

    def _left_behind(self) -> PlannedRun | None:
        """A run of an open trial that nobody does, or of an ended one that has lost its record."""
        for run in [*(self._runs_of(trial)[-1] for trial in self._open_trials()), *self._redo.values()]:
            if run.name not in self._given and self._is_free(run):
                self._redo.pop(run.name, None)
                return run
        return None

    def _is_free(self, run: PlannedRun) -> bool:
        """Whether no harness has the run and no worker does it."""
        lock = self._results.run(run.name).lock()
        if lock is None:
            return False
        lock.release()
        return True

    def _has_room(self) -> bool:
        """Whether a new trial is wanted, beside those that ended and those that go on."""
        trials = self._trials()
        going = [trial for trial in trials if trial.state == TrialState.RUNNING and RUN in trial.user_attrs]
        return sum(map(self._has_ended, trials)) + len(going) < self._config.trials

    def _has_ended(self, trial: FrozenTrial) -> bool:
        return trial.state.is_finished() and RUN in trial.user_attrs and trial.number not in self._failed_before

    def _is_stuck(self) -> bool:
        return self._refusals >= REFUSALS_IN_A_ROW

    def _new_trial(self) -> PlannedRun | None:
        """Ask for a trial; its run, unless none can be so, its result is known, or it is going on already."""
        self._enqueue_failed()
        trial = self._study.ask(self._config.distributions())
        try:
            runs = self._plan_trial(self._experiment.trial(trial.params))
        except ValidationError as error:
            self._refusals += 1
            self._last_refusal = explain(error.errors()[0])
            trial.set_user_attr(REFUSED, self._last_refusal)
            self._study.tell(trial, state=TrialState.FAIL)
            return None
        self._refusals = 0
        if self._folder:
            trial.set_user_attr(FOLDER, self._folder)
        trial.set_user_attr(RUN, runs[-1].name)
        self._runs[trial.number] = runs
        return None if self._is_settled_by_another(trial, runs[-1]) else runs[-1]

    def _enqueue_failed(self) -> None:
        """Let the next trial be one that failed before, or whose run the study does not know."""
        done = {trial.user_attrs.get(RUN) for trial in self._trials() if trial.state != TrialState.FAIL}
        while self._again:
            name, params = next(iter(self._again.items()))
            del self._again[name]
            if name not in done:  # by another harness
                self._study.enqueue_trial(params)
                return

    def _is_settled_by_another(self, trial: optuna.Trial, run: PlannedRun) -> bool:
        """Whether the run was had before: its trial then ends as that one did, or with it."""
        record = self._record_of(run)
        if record is not None:
            self._finish(trial, record)
            return True
        twins = {
            twin.state: twin
            for twin in self._trials()
            if twin.user_attrs.get(RUN) == run.name and twin.number not in (trial.number, *self._failed_before)
        }
        if twin := twins.get(TrialState.COMPLETE):  # in another result folder
            self._study.tell(trial, twin.values)
        elif twin := twins.get(TrialState.PRUNED):
            for iteration, value in twin.intermediate_values.items():
                trial.report(value, iteration)
            self._study.tell(trial, state=TrialState.PRUNED)
        elif TrialState.FAIL in twins:
            self._study.tell(trial, state=TrialState.FAIL)
        return bool(twins)

    # Telling

    def _finish(self, trial: FrozenTrial | optuna.Trial, record: Record) -> str | None:
        values = self._values(record)
        missing = [objective for objective, value in values.items() if value is None]
        if missing:
            self._study.tell(trial.number, state=TrialState.FAIL)
            reason = f"the validation set has no category of {' and '.join(missing)}, which has no value"
            return f"trial {trial.number} failed: {reason}"
        self._study.tell(trial.number, [value for value in values.values() if value is not None])
        return None

    def _outdated(self, record: Record) -> str | None:
        """A run that was done again, as its record was lost, may give other values than it gave the study."""
        values = list(self._values(record).values())
        for trial in self._own_trials():
            if (
                trial.user_attrs.get(RUN) == record.name
                and trial.state == TrialState.COMPLETE
                and trial.values != values
            ):
                return (
                    f"trial {trial.number}: its run now gives other values than the study holds: delete {self._place}"
                )
        return None

    def _values(self, record: Record) -> dict[str, float | None]:
        reported = columns(record.metrics)
        return {objective: reported[objective] for objective in self._config.objectives}

    # Looking

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _own_trials(self) -> list[FrozenTrial]:
        """Those whose runs lie in this result folder."""
        return [trial for trial in self._trials() if trial.user_attrs.get(FOLDER, "") == self._folder]

    def _open_trials(self, name: str | None = None) -> list[FrozenTrial]:
        """Of this result folder, those that have not ended: all, or those of one run."""
        running = [trial for trial in self._own_trials() if trial.state == TrialState.RUNNING]
        return [trial for trial in running if name is None or trial.user_attrs.get(RUN) == name]

    def _runs_of(self, trial: FrozenTrial) -> list[PlannedRun]:
        """The trial's run, its base run before it; none where no run can be so."""
        if trial.number not in self._runs and RUN in trial.user_attrs:
            try:
                self._runs[trial.number] = self._plan_trial(self._experiment.trial(trial.params))
            except ValidationError:  # a strategy's code has changed
                return []
        return self._runs.get(trial.number, [])

    def _label(self, trial: FrozenTrial) -> str:
        runs = self._runs_of(trial)
        return runs[-1].method if runs else str(trial.params)

    def _record_of(self, run: PlannedRun) -> Record | None:
        try:
            return self._results.run(run.name).read_record(run.identity)
        except RecordError:  # told, and set aside, by the harness that does the run again
            return None
