"""Fit heads along a path of C: every class and every fold at once, each proven or listed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featx.heads.normalize import Normalizer
from featx.heads.solver.certificate import Proof, Solution, Uncertified
from featx.heads.solver.exact_steps import ExactSteps
from featx.heads.solver.extrapolation import extrapolate
from featx.heads.solver.linear_algebra.blocks import Blocks
from featx.heads.solver.linear_algebra.gram import Gram
from featx.heads.solver.linear_algebra.primal import Primal
from featx.heads.solver.linear_algebra.products import ProductCache
from featx.heads.solver.newton import minimise
from featx.heads.solver.objectives import SquaredHinge
from featx.heads.solver.primal_exact_steps import PrimalExactSteps
from featx.heads.solver.state import State, rows_of
from featx.heads.solver.targets import Targets
from featx.runtime.device import strict_precision

TOLERANCE = 1e-4
FINE_TOLERANCE = 1e-6
_STEP_UP = 30.0  # a cold start climbs to its C by at most this factor at a time
_WARM_START_TOLERANCE = 0.1
_EASY = 60.0  # largest curvature times largest eigenvalue below which a cold start needs no climb
_ARRAYS = 16  # (P, n) arrays the solver holds at once


class Solver:
    """The problems of some targets on some features; `at` brings all of them to the optimum for one C.

    Attributes:
        form: "gram" or "primal", see `spaces`.
        trained: (1 + F, n) bool: all images, then what each fold trains on.
    """

    def __init__(
        self,
        blocks: Blocks,
        targets: Targets,
        *,
        held_out: npt.NDArray[np.bool_] | None = None,
        whole: bool = True,
        intercept: str | None = None,
        scaling: float = 1.0,
        tolerance: float = TOLERANCE,
        memory_bytes: int = 4 << 30,
        form: str | None = None,
    ) -> None:
        """Choose a form and read the features.

        Args:
            held_out: (F, n), what each fold leaves out; None for no folds.
            whole: also train on all images, before the folds.
            intercept: "penalised" (an SVM's default, as in LinearSVC), "free" (a softmax's) or "none".
            scaling: s, LinearSVC's intercept_scaling.
            memory_bytes: beside the features; decides the form and how many problems are solved at a time.
            form: "gram" or "primal" instead of what fits and is faster.
        """
        n, d = blocks.n, blocks.d
        self.blocks, self.targets, self.tolerance = blocks, targets, tolerance
        self._whole = whole
        self.trained = np.ones((int(whole), n), bool)
        if held_out is not None:
            self.trained = np.concatenate([self.trained, ~held_out])
        self._intercept = intercept or ("penalised" if targets.kind == "svm" else "free")
        self._scaling, self._memory = scaling, memory_bytes
        if form is None:
            # A product costs n^2 in one form and 2 n d in the other. What does not fit in one may fit in the other;
            # the primal form can do without its matrix.
            fits = 8 * n * n <= memory_bytes
            form = "gram" if fits and (n <= 2 * d or 8 * d * d > memory_bytes) else "primal"
        self.form = form
        self._proof = Proof(blocks, self._intercept, scaling, tolerance)
        self._space = self._make_space(torch.float32)
        self._exact_space: Gram | Primal | None = None
        self._state: State | None = None
        self._c: float | None = None
        self._before: tuple[Tensor, Tensor] | None = None  # coef and scores at the C before
        self._products: dict[torch.dtype, ProductCache] = {}
        self.uncertified: list[Uncertified] = []

    def _make_space(self, dtype: torch.dtype) -> Gram | Primal:
        if self.form == "gram":
            return Gram(self.blocks, self._intercept, self._scaling, dtype)
        whole = 2 * dtype.itemsize * self.blocks.d**2 <= self._memory  # the matrix and its factor
        return Primal(self.blocks, self._intercept, self._scaling, dtype, whole_matrix=whole)

    @property
    def problems(self) -> int:
        """All of them: per fold the classes of an SVM or the one of a softmax."""
        return self.targets.groups * len(self.trained)

    def at(self, c: float) -> None:
        """Bring all problems to the optimum for this C, from where they are."""
        self._c = c
        everything = torch.arange(self.problems, device=self.blocks.device)
        per_problem = 4 * _ARRAYS * self.targets.group * self.blocks.n
        count = max(1, self._memory // per_problem)
        chunks = [everything[start : start + count] for start in range(0, len(everything), count)]
        summed = False
        if self._state is None:
            self._state = self._zero()
            for smaller in self._warm_start(c):
                for chunk in chunks:
                    self._minimise(smaller, chunk, self._space, _WARM_START_TOLERANCE)
        elif self.targets.kind == "softmax":
            self._extrapolate(c, chunks)
            summed = True
        for chunk in chunks:
            self._minimise(c, chunk, self._space, self.tolerance, summed=summed)
        stalled = torch.nonzero(~self._state.certified)[:, 0]
        if len(stalled):
            space = self._in_float64()
            if space is not None:
                self._minimise(c, stalled, space, self.tolerance)
        gaps = (self._state.gap / self._state.value).tolist()
        for name in torch.nonzero(~self._state.certified)[:, 0].tolist():
            fold, problem = divmod(name, self.targets.groups)
            fold -= int(self._whole)
            self.uncertified.append(Uncertified(c, problem, None if fold < 0 else fold, gaps[name]))

    def _zero(self) -> State:
        rows = self.problems * self.targets.group
        return State.zero(self._space, rows, self.targets.group, self.blocks.n, self.blocks.device)

    def _warm_start(self, c: float) -> list[float]:
        """Smaller values of C, ascending, that lead a cold start to `c`."""
        first = torch.zeros(1, dtype=torch.int64)
        objective = self.targets.objective(c, self.trained, first, torch.float32, self.blocks.device)
        hardness, smaller_values = self._space.largest * objective.largest_curvature(), list[float]()
        while hardness > _EASY:
            hardness, c = hardness / _STEP_UP, c / _STEP_UP
            smaller_values.insert(0, c)
        return smaller_values

    def _extrapolate(self, c: float, chunks: list[Tensor]) -> None:
        """Guess the optima for `c` from those of the last two values of C."""
        state, before = self._state, self._before
        assert state is not None
        fits = 2 * (state.coef.nbytes + state.scores.nbytes) <= self._memory
        self._before = (state.coef.clone(), state.scores.clone()) if fits else None
        for chunk in chunks:
            rows = rows_of(chunk, self.targets.group)
            objective = self.targets.objective(c, self.trained, chunk, self._space.dtype, self.blocks.device)
            part = state.select(chunk, self.targets.group)
            earlier = None if before is None else (before[0][rows], before[1][rows])
            extrapolate(self._space, objective, part, earlier)
            state.put(chunk, self.targets.group, part)

    def _minimise(
        self, c: float, groups: Tensor, space: Gram | Primal, tolerance: float, *, summed: bool = False
    ) -> State:
        """Bring some problems to their optimum, from where they are; what became of them is also stored.

        Args:
            summed: the scores of the state are sums, not products of its coef.
        """
        assert self._state is not None
        device, dtype, targets = self.blocks.device, space.dtype, self.targets
        objective = targets.objective(c, self.trained, groups, dtype, device)
        part = self._state.select(groups, targets.group)
        if dtype != self._space.dtype:
            part = part.to(space)
        exact: ExactSteps | PrimalExactSteps | None = None
        if isinstance(space, Gram) and isinstance(objective, SquaredHinge):
            costs = targets.family_costs(c, self.trained, dtype, device)
            exact = ExactSteps(space, groups // targets.groups, costs, self._memory // 4)
        elif isinstance(space, Primal) and isinstance(objective, SquaredHinge):
            # With all rows in one block; where they are streamed, a pass over them serves every problem at once.
            rows = next(iter(self.blocks.rows(dtype))) if self.blocks.resident else None
            if rows is not None and len(rows[1]) == self.blocks.n and space.whole_matrix:
                if space.dtype not in self._products:
                    self._products[space.dtype] = ProductCache(rows[1], self._memory // 4)
                exact = PrimalExactSteps(space, rows[1], groups % targets.groups, self._products[space.dtype])
        minimise(space, objective, part, tolerance=tolerance, exact=exact, summed=summed)
        self._state.put(groups, targets.group, part)
        return part

    def _in_float64(self) -> Gram | Primal | None:
        """The space of float64, None if its matrix does not fit."""
        if self._exact_space is None and (self.form == "primal" or 8 * self.blocks.n**2 <= self._memory):
            self._exact_space = self._make_space(torch.float64)
        return self._exact_space

    def scores(self, fold: int) -> Tensor:
        """(K, n) scores of all images by the heads of a row of `trained`; K rows also for two classes."""
        assert self._state is not None
        per_fold = self.targets.groups * self.targets.group
        found = self._state.scores[fold * per_fold : (fold + 1) * per_fold]
        return torch.cat([-found, found]) if len(found) == 1 else found

    @property
    def steps(self) -> int:
        """Newton steps the slowest problem has taken so far."""
        return 0 if self._state is None else int(self._state.steps.max())

    def coef(self) -> Tensor:
        """What `solution` needs to make the heads trained on all images, as they are now."""
        assert self._state is not None
        return self._state.coef[: self.targets.groups * self.targets.group].clone()

    def solution(self, coef: Tensor, c: float) -> Solution:
        """The heads trained on all images, with their proof in float64 on the features themselves.

        A softmax is brought nearer to its optimum than the tolerance first: a gap of 1e-4 still decides 5 of 1,000
        unseen images otherwise than the optimum does, 1e-5 none (measured); for an SVM 1e-4 decides none.
        """
        if self.targets.kind == "softmax":
            coef = self._finer(self._space, coef, c)
        found = self._proven(self._space, coef, c)
        space = None if found.certified.all() else self._in_float64()
        if space is not None:
            # Proven for products in float32, but not for the features themselves: all of it in float64.
            found = self._proven(space, self._finer(space, coef, c), c)
        return found

    def _finer(self, space: Gram | Primal, coef: Tensor, c: float) -> Tensor:
        """The heads trained on all images, brought to a tenth of the tolerance; the state stays as it is."""
        before, device = self._state, self.blocks.device
        groups = torch.arange(self.targets.groups, device=device)
        assert before is not None
        now = before.select(groups, self.targets.group)
        is_where_we_are = c == self._c and torch.equal(now.coef, coef)
        if is_where_we_are and space is self._space:
            objective = self.targets.objective(c, self.trained, groups, space.dtype, device)
            wanted = (
                0.1
                * self.tolerance
                * torch.minimum(now.value, objective.value(torch.zeros_like(now.scores)) - now.value)
            )
            if bool((now.gap <= wanted).all()):
                return coef
        self._state = State.zero(self._space, len(coef), self.targets.group, self.blocks.n, device)
        self._state.coef[:] = coef
        self._state.scores[:] = now.scores if is_where_we_are else self._space.decision_function(coef)
        found = self._minimise(c, groups, space, 0.1 * self.tolerance).coef
        self._state = before
        return found

    def _proven(self, space: Gram | Primal, coef: Tensor, c: float) -> Solution:
        """Weights and their certificate; products in float32 first, in float64 if these cannot prove it."""
        groups = torch.arange(self.targets.groups, device=self.blocks.device)
        by_dual = self.targets.kind == "svm" and self._intercept != "free" and self.form == "gram"
        # The rounding of float32 products would pass for proof of what is asked for more precisely than that.
        precise = space.dtype == torch.float64 or self.tolerance < FINE_TOLERANCE
        for dtype in (torch.float32, torch.float64)[precise:]:
            objective = self.targets.objective(c, self.trained, groups, dtype, self.blocks.device)
            weights, bias = space.weights(coef, dtype)
            if self.targets.kind == "softmax":
                bias = bias - bias.mean()  # the same constant in all of them changes nothing
            dual = (coef.to(dtype), space.along_mean(coef)) if by_dual and isinstance(space, Gram) else None
            gaps, values = self._proof.certificate(objective, weights, bias, dual, dtype)
            at_zero = objective.value(weights.new_zeros(objective.rows, self.blocks.n, dtype=dtype))
            certified = gaps <= self.tolerance * torch.minimum(values, (at_zero - values).clamp_min(0))
            certified |= gaps <= 1e-8 * self.tolerance * at_zero  # nothing can be learnt: f is f(0) but for rounding
            if bool(certified.all()):
                break
        if len(weights) == 1:
            weights, bias = torch.cat([-weights, weights]), torch.cat([-bias, bias])
        elif self.targets.binary:
            gaps, values = 2 * gaps, 2 * values  # see `Targets.objective`: with C / 2 everything is half as large
        arrays = [tensor.cpu().numpy() for tensor in (weights, bias, gaps, values, certified)]
        return Solution(*arrays)


@strict_precision()
def solve(
    kind: str,
    features: npt.NDArray[np.floating],
    labels: npt.NDArray[np.integer],
    c: float,
    *,
    device: torch.device | None = None,
    form: str | None = None,
    tolerance: float = TOLERANCE,
) -> Solution:
    """The heads of features (n, D) in memory, as they are, with labels (n,) 0..K-1, for one C.

    svm: for every class against the rest, 1/2 |w|^2 + 1/2 b^2 + C sum_n max(0, 1 - y_n (w.x_n + b))^2,
    scikit-learn's LinearSVC (squared hinge, intercept penalised).
    softmax: 1/2 |W|^2 + C sum_n -log softmax(W x_n + b)[y_n], scikit-learn's LogisticRegression (intercept free).
    With two classes both fit one weight vector w, returned as the rows -w/2 and w/2 (softmax) or -w and w (svm), so
    that the scores' order, and the softmax's probabilities, are those of scikit-learn.
    """
    blocks = Blocks(features, None, Normalizer("none"), device or torch.device("cpu"), 8 * features.size)
    solver = Solver(blocks, Targets(kind, labels, int(labels.max()) + 1), form=form, tolerance=tolerance)
    solver.at(c)
    return solver.solution(solver.coef(), c)
