"""One Optuna study per workload, over recipe x variant x config; asked, and told."""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping, Sequence, Set
from functools import cached_property
from operator import itemgetter
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial

from fp4bench.spaces import Space
from fp4bench.trials import FailedTrial, PassedTrial
from fp4kernels.registry import any_variant
from fp4kernels.variants import Candidate

ATTEMPTS = 2  # asks before a neighbour of the best is tried instead; each takes milliseconds
STARTUP_TRIALS = 8

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Study:
    """Proposes candidates of `space` but those of `never`, each at most once: defaults, then
    `hints`, then its own."""

    def __init__(
        self,
        space: Space,
        seed: int,
        hints: Sequence[Candidate] = (),
        never: Set[Candidate] = frozenset(),
    ) -> None:
        self.space = space
        self.ended: dict[str, str] = {}  # recipe → why its default failed
        self._hints = [*hints]
        self._random = random.Random(seed)
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._samplers = {
                recipe: optuna.samplers.PartialFixedSampler({"recipe": recipe}, sampler)
                for recipe in space.recipes
            }
        self._study = optuna.create_study(sampler=sampler)
        self._best: dict[str, tuple[float, Candidate]] = {}  # recipe → (ratio, candidate)
        self._unseen = {
            name: dict.fromkeys(one for one in candidates if one not in never)
            for name, candidates in space.candidates.items()
        }

    def ask_for(self, recipes: Sequence[str], each: int) -> list[Candidate]:
        """Up to `each` candidates of every recipe, in turn."""
        asked = [self.ask(recipe) for _ in range(each) for recipe in recipes]
        return [candidate for candidate in asked if candidate is not None]

    def ask(self, recipe: str) -> Candidate | None:
        """An unseen legal candidate of `recipe`, or None when all have been proposed."""
        unseen = self._unseen[recipe]
        if not unseen:
            return None
        known = [self.space.default(recipe), *self._hints]
        candidate = next((each for each in known if each in unseen), None)
        candidate = candidate or self._sample(recipe) or self._neighbour(recipe)
        del unseen[candidate]
        return candidate

    def tell(self, trial: PassedTrial | FailedTrial) -> None:
        """Learn from a trial of this run, or of an earlier one on the same device.

        A recipe whose default failed is asked no more: there is nothing to win against.
        """
        candidate = trial.candidate
        unseen = self._unseen.get(candidate.recipe, {})
        unseen.pop(candidate, None)
        if isinstance(trial, FailedTrial) and candidate == self.space.default(candidate.recipe):
            unseen.clear()
            self.ended[candidate.recipe] = trial.reason
        ratio = trial.beside_default if isinstance(trial, PassedTrial) else None
        if ratio is not None:
            best = self._best.get(candidate.recipe, (ratio, candidate))
            self._best[candidate.recipe] = min((ratio, candidate), best, key=itemgetter(0))
        params: dict[str, str | int] = {"recipe": candidate.recipe, "variant": candidate.variant}
        params |= {f"{candidate.variant}.{k}": v for k, v in candidate.config.values().items()}
        if any(params[name] not in self._choices.get(name, ()) for name in params):
            return  # of another effort level: no point on this study's axes
        self._study.add_trial(
            create_trial(
                state=TrialState.FAIL if ratio is None else TrialState.COMPLETE,
                params=params,
                distributions={n: CategoricalDistribution(self._choices[n]) for n in params},
                value=ratio,
            )
        )

    def _sample(self, recipe: str) -> Candidate | None:
        """What the sampler wants and no one has tried, or None after some attempts."""
        self._study.sampler = self._samplers[recipe]
        for _ in range(ATTEMPTS):
            trial = self._study.ask()
            candidate = self._decode(trial)
            # a proposal is no trial yet: only what was measured is told
            self._study.tell(trial, state=TrialState.FAIL)
            if candidate in self._unseen[recipe]:
                return candidate
        return None

    def _neighbour(self, recipe: str) -> Candidate:
        """The unseen candidate with the fewest fields unlike the best one's; chance breaks ties.

        A sampler that has found the good region proposes what is known there; this goes on from it.
        """
        unseen = [*self._unseen[recipe]]
        if recipe not in self._best:
            return self._random.choice(unseen)
        best = self._best[recipe][1]
        goal = {"variant": best.variant, **best.config.values()}

        def unlike(candidate: Candidate) -> int:
            fields = {"variant": candidate.variant, **candidate.config.values()}
            return sum(fields.get(name) != value for name, value in goal.items())

        self._random.shuffle(unseen)
        return min(unseen, key=unlike)

    @cached_property
    def _choices(self) -> Mapping[str, Sequence[Any]]:
        """The axes: parameter name → its values."""
        fields = {
            f"{name}.{field}": values
            for name, table in self.space.values.items()
            for field, values in table.items()
        }
        return {"recipe": self.space.recipes, "variant": sorted(self.space.values), **fields}

    def _decode(self, trial: optuna.Trial) -> Candidate:
        def pick(name: str) -> Any:
            return trial.suggest_categorical(name, self._choices[name])

        recipe, name = pick("recipe"), pick("variant")
        kernel = any_variant(name)
        config = {field: pick(f"{name}.{field}") for field in self.space.values[name]}
        return Candidate(recipe, name, kernel.layout, kernel.config(config))
