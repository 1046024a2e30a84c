"""Runs the trials of a study that are missing, and shows how long they take."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from tqdm import tqdm

from rebalance.config import DownstreamOptions
from rebalance.errors import InputError
from rebalance.learning.loop import LoopOptions
from rebalance.trials.arms import BEST, Arm
from rebalance.trials.batches import Mixture
from rebalance.trials.material import TEST, TRAIN, VAL, Material
from rebalance.trials.pools import Pool
from rebalance.trials.records import TrialFiles, TrialRecord
from rebalance.trials.remedies import REMEDIES
from rebalance.trials.summary import Summary, seeds_to_choose_over
from rebalance.trials.trial import Trial

_FILLED_BYTES = 2**30  # images that remedies have made are kept up to here; the next ones clear them


class TrialBar:
    """One progress bar over the steps of all trials, with the time that is left."""

    def __init__(self, shown: bool) -> None:
        self.bar = tqdm(desc="trials", unit="step", disable=not shown, dynamic_ncols=True)

    def __enter__(self) -> TrialBar:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def expect(self, steps: int) -> None:
        """Count on so many steps from now on."""
        self.bar.total = self.bar.n + steps
        self.bar.refresh()

    def begin(self, name: str, seed: int) -> None:
        """Say which trial runs."""
        self.bar.set_postfix_str(f"{name} seed {seed}", refresh=False)

    def step(self) -> None:
        """Count a step."""
        self.bar.update()


def check_best(wanted: Sequence[Arm], available: Sequence[Arm]) -> None:
    """Check that there is an arm without synthetic images for `BEST` to stand for.

    Raises:
        InputError: there is none.
    """
    if any(arm.remedy == BEST for arm in wanted) and not any(arm.cheap for arm in (*wanted, *available)):
        raise InputError("`arms`: best stands for one of the arms without synthetic images", remedy="Name some")


@dataclass(frozen=True)
class TrialRunner:
    """The trials of a study: those that are there, and those still to be run.

    Attributes:
        files: the trials on disk.
        records: the finished trials, by arm and seed.
        material: the images.
        options: the classifier.
        loop: how it is computed.
        device: where.
        bar: the progress bar.
        pools: images by seed and kind, as far as they were needed.
        filled: real images with those that remedies made of them, by remedy and seed.
    """

    files: TrialFiles
    records: dict[Arm, dict[int, TrialRecord]]
    material: Material
    options: DownstreamOptions
    loop: LoopOptions
    device: torch.device
    bar: TrialBar
    pools: dict[int, dict[str, Pool]] = field(default_factory=dict)
    filled: dict[tuple[str, int], Pool] = field(default_factory=dict)

    def run(self, wanted: Sequence[Arm], seeds: int) -> tuple[Summary, Arm | None]:
        """Run the cheap arms, then the others, seed by seed; return the summary of all trials and the best cheap arm.

        Trials of arms and seeds that are not asked for count as well.
        """
        if self.loop.threads:
            torch.set_num_threads(self.loop.threads)
        n_seeds = {arm: len(records) for arm, records in self._finished().items()}
        compared = seeds_to_choose_over(n_seeds | {arm: max(seeds, n_seeds.get(arm, 0)) for arm in wanted})
        self.bar.expect(self.options.steps * self._missing(wanted, seeds))
        self._train([arm for arm in wanted if arm.cheap], seeds)
        best = Summary(self.material, self._finished(), compared).best_on_val()
        check_best(wanted, [best] if best else [])
        resolved = list(dict.fromkeys(arm.resolved(best) if best else arm for arm in wanted))
        self.bar.expect(self.options.steps * self._missing(resolved, seeds))
        self._train(resolved, seeds)
        return Summary(self.material, self._finished(resolved), compared), best

    def _finished(self, first: Sequence[Arm] = ()) -> dict[Arm, list[TrialRecord]]:
        """Return the trials of every arm in the order of the seeds, up to the first that is missing.

        The arms named come first.
        """
        finished = {}
        for arm in dict.fromkeys([*first, *self.records]):
            of_arm = self.records.get(arm, {})
            finished[arm] = [of_arm[seed] for seed in itertools.takewhile(of_arm.__contains__, itertools.count())]
        return {arm: records for arm, records in finished.items() if records}

    def _missing(self, wanted: Sequence[Arm], seeds: int) -> int:
        """Return how many trials are still to be run, `BEST` counted as an arm of its own until it is resolved."""
        return sum(seed not in self.records.get(arm, {}) for arm in wanted for seed in range(seeds))

    def _train(self, arms: Sequence[Arm], seeds: int) -> None:
        """Run the missing trials seed by seed, so that a study that is stopped has as many of each arm."""
        for seed, arm in itertools.product(range(seeds), arms):
            if seed not in self.records.get(arm, {}):
                self.bar.begin(arm.name, seed)
                trial = Trial(arm, seed, self._mixture(arm, seed), self.options, self.loop, self.device)
                pools = self._pools(seed)
                confusion = trial.run(pools[VAL], pools[TEST], self.bar.step)
                record = TrialRecord(confusion, self.material.amounts(arm))
                self.files.write(arm, seed, record)
                self.records.setdefault(arm, {})[seed] = record

    def _mixture(self, arm: Arm, seed: int) -> Mixture:
        """Decide what an arm draws."""
        pools = self._pools(seed)
        synthetic = pools[arm.synthetic] if arm.synthetic else None
        return Mixture.of_amounts(self._filled(arm.remedy, seed), synthetic, self.material.amounts(arm, pools))

    def _pools(self, seed: int) -> dict[str, Pool]:
        if seed not in self.pools:
            self.pools[seed] = self.material.of_seed(seed)
        return self.pools[seed]

    def _filled(self, remedy: str, seed: int) -> Pool:
        """Return the train images with those that a remedy makes of them, of which each arm takes what it needs.

        They are made once a seed and kept, unless those of all seeds take too much memory.
        """
        key, train = (remedy, seed), self._pools(seed)[TRAIN]
        if key in self.filled:
            return self.filled[key]
        filled = REMEDIES[remedy].filled_up(train, seed)
        if filled is not train:
            if sum(pool.pixels.nbytes for pool in self.filled.values()) > _FILLED_BYTES:
                self.filled.clear()
            self.filled[key] = filled
        return filled
