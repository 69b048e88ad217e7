"""The solver's objectives against finite differences, its optima and proofs against scikit-learn and float64 sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import clusters
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from featx.errors import NonFiniteRow, UsageError
from featx.heads.normalize import Normalizer
from featx.heads.selection.search import fit_heads
from featx.heads.solver.conjugate_gradients import conjugate_gradients
from featx.heads.solver.extrapolation import extrapolate
from featx.heads.solver.linear_algebra.blocks import Blocks
from featx.heads.solver.linear_algebra.gram import Gram, largest_eigenpairs
from featx.heads.solver.linear_algebra.primal import Primal
from featx.heads.solver.linear_algebra.products import ProductCache
from featx.heads.solver.linear_algebra.readers import normalizer_for
from featx.heads.solver.linear_algebra.subsystems import solve_subsystems
from featx.heads.solver.objectives import CrossEntropy, SquaredHinge
from featx.heads.solver.primal_exact_steps import PrimalExactSteps
from featx.heads.solver.solver import Solver, solve
from featx.heads.solver.state import State
from featx.heads.solver.targets import Targets

CPU, F64 = torch.device("cpu"), torch.float64


def losses():
    """One objective of each kind on 7 images: P x n scores, float64."""
    generator = np.random.default_rng(0)
    labels = torch.from_numpy(generator.integers(0, 3, 7))
    signs = torch.from_numpy(generator.choice([-1.0, 1.0], (3, 7)))
    costs = torch.from_numpy(generator.uniform(0.5, 2, (3, 7)))
    costs[:, 2] = 0  # held out
    return [SquaredHinge(signs, costs), CrossEntropy(labels, costs[:2], 3)]


@pytest.mark.parametrize("loss", losses(), ids=lambda loss: type(loss).__name__)
def test_residuals_and_curvatures_are_the_derivatives_of_the_value(loss):
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(loss.rows, 7, generator=generator, dtype=torch.float64)
    change = torch.randn(loss.rows, 7, generator=generator, dtype=torch.float64)
    step = 1e-6
    slope = (loss.value(scores + step * change) - loss.value(scores - step * change)) / (2 * step)
    found = (loss.residual(scores) * change).sum(1).view(-1, loss.group).sum(1)
    torch.testing.assert_close(found, slope, rtol=1e-6, atol=1e-8)
    bent = (loss.residual(scores + step * change) - loss.residual(scores - step * change)) / (2 * step)
    torch.testing.assert_close(loss.curvature_product(loss.curvature(scores), change), bent, rtol=1e-5, atol=1e-7)


def test_the_loss_of_well_separated_images_keeps_its_digits_in_float32():
    own = torch.tensor([-2.0, 0.0, 5.0, 15.0, 40.0, 200.0])
    scores = torch.stack([own, torch.zeros(6), torch.full((6,), -1.0)])
    labels = torch.zeros(6, dtype=torch.int64)
    for image in range(6):
        costs = torch.zeros(1, 6, dtype=torch.float64)
        costs[0, image] = 1.0
        loss, precise = CrossEntropy(labels, costs.float(), 3), CrossEntropy(labels, costs, 3)
        expected = torch.log1p(torch.exp(-own[image].double()) * (1 + torch.exp(torch.tensor(-1.0).double())))
        torch.testing.assert_close(precise.value(scores.double())[0], expected)
        torch.testing.assert_close(loss.value(scores)[0], expected, rtol=1e-5, atol=1e-37)
        pull = loss.residual(scores)[:, image].double()
        torch.testing.assert_close(pull[0], torch.expm1(-expected), rtol=1e-5, atol=1e-37)
        torch.testing.assert_close(pull.sum(), pull.new_zeros(()), rtol=0, atol=1e-7 * float(pull.abs().max()))


@pytest.mark.parametrize("loss", losses(), ids=lambda loss: type(loss).__name__)
def test_the_curvature_by_the_loose_coordinate_is_that_of_moving_all_scores_along_it(loss):
    generator = torch.Generator().manual_seed(2)
    scores = torch.randn(loss.rows, 7, generator=generator, dtype=torch.float64)
    loose = torch.randn(7, generator=generator, dtype=torch.float64)
    matrix = loss.extra_curvature(loss.curvature(scores), loose)
    for row in range(loss.group):
        moved = torch.zeros_like(scores).view(-1, loss.group, 7)
        moved[:, row] = loose
        curved = loss.curvature_product(loss.curvature(scores), moved.view_as(scores)) @ loose
        torch.testing.assert_close(matrix[:, :, row].flatten(), curved)


def test_subsystems_one_by_one_and_filled_up_in_batches_are_solved_alike():
    generator = torch.Generator().manual_seed(3)
    root = torch.randn(20, 20, generator=generator, dtype=torch.float64)
    matrix = root @ root.T
    chosen = torch.rand(5, 20, generator=generator) < 0.5
    chosen[0] = False
    diagonal = torch.rand(5, 20, generator=generator, dtype=torch.float64) + 0.1
    right = torch.randn(5, 20, 2, generator=generator, dtype=torch.float64)
    found = solve_subsystems(matrix, chosen, diagonal, right)
    batched = solve_subsystems(matrix, chosen, diagonal, right, one_by_one=False)
    for problem in range(5):
        rows = chosen[problem].nonzero()[:, 0]
        system = matrix[rows][:, rows] + torch.diag(diagonal[problem, rows])
        expected = torch.zeros(20, 2, dtype=torch.float64)
        expected[rows] = torch.linalg.solve(system, right[problem, rows])
        torch.testing.assert_close(found[problem], expected)
        torch.testing.assert_close(batched[problem], expected)


@pytest.mark.parametrize("one_by_one", [True, False])
def test_a_subsystem_that_cannot_be_factored_spoils_no_other(one_by_one):
    chosen = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 1], [0, 0, 0, 1]]) > 0
    diagonal = torch.ones(3, 4, dtype=torch.float64)
    diagonal[1, 2] = -7
    right = torch.arange(12, dtype=torch.float64).view(3, 4, 1)
    found = solve_subsystems(torch.eye(4, dtype=torch.float64), chosen, diagonal, right, one_by_one=one_by_one)
    assert found[0].flatten().tolist() == pytest.approx([0, 0, 1, 0])
    assert found[2].flatten().tolist() == pytest.approx([0, 0, 0, 5.5])
    assert torch.equal(torch.isnan(found[1, :, 0]), chosen[1])


@pytest.mark.parametrize("intercept", ["penalised", "free", "none"])
@pytest.mark.parametrize(("per_class", "width"), [(15, 6), (4, 30)])
def test_an_exact_step_on_the_weights_leads_to_where_the_quadratic_model_is_lowest(intercept, per_class, width):
    """By a system of as many unknowns as there are values, or as there are images."""
    values, labels = clusters(per_class=per_class, width=width, seed=13)
    n = len(values)
    space = Primal(Blocks(values.astype(np.float64), None, Normalizer("none"), CPU, 1 << 30), intercept, 2.0, F64)
    _, rows = next(iter(space.blocks.rows(F64)))
    signs = torch.where(torch.from_numpy(labels) == torch.arange(3)[:, None], 1.0, -1.0).double()
    loss = SquaredHinge(signs, torch.linspace(0.5, 2, n, dtype=F64).repeat(3, 1))
    points = 0.3 * torch.randn(3, space.width, generator=torch.Generator().manual_seed(4), dtype=F64)
    features = torch.cat([torch.from_numpy(values).double(), torch.full((n, 1), 2.0)], 1)[:, : space.width]
    if intercept == "free":
        # The free intercept is the score at the mean: columns as the space has them.
        features = torch.cat([rows, torch.ones(n, 1, dtype=F64)], 1)
    bounded = torch.ones(space.width, dtype=F64)
    bounded[-1] = 0.0 if intercept == "free" else 1.0

    def f(own, row):
        slack = (1 - loss.signs[row] * (features @ own)).clamp_min(0)
        return 0.5 * (bounded * own * own).sum() + (loss.costs[row] * slack * slack).sum()

    state = State(points, space.decision_function(points), *(torch.zeros(3, dtype=F64) for _ in range(4)))
    everything, budget = torch.arange(3), torch.full((3,), 1000)
    exact = PrimalExactSteps(space, rows, everything, ProductCache(rows, 1 << 20))
    solved, steps = exact.steps(loss, state, everything, everything, budget)
    assert solved.tolist() == [0, 1, 2]
    for row in range(3):
        gradient = torch.autograd.functional.jacobian(lambda own, row=row: f(own, row), points[row])
        hessian = torch.autograd.functional.hessian(lambda own, row=row: f(own, row), points[row])
        torch.testing.assert_close(steps[row], -torch.linalg.solve(hessian, gradient), rtol=1e-6, atol=1e-8)
    assert not len(exact.steps(loss, state, everything, everything, budget // 1000)[0])


@pytest.mark.parametrize("memory", [1 << 20, 8 * 15**2, 8 * 9**2])
def test_products_are_those_of_the_rows_whatever_was_asked_for_before_and_kept(memory):
    generator = torch.Generator().manual_seed(5)
    values = torch.randn(40, 7, generator=generator, dtype=F64)
    products, asked = ProductCache(values, memory), torch.arange(40)
    for turn in range(60):
        rows = asked[torch.rand(40, generator=generator) < 0.05 + 0.2 * (turn % 3)]
        found = products.of(turn % 2, rows)
        torch.testing.assert_close(found, values[rows] @ values[rows].T)
        found.fill_(torch.nan)  # the caller's own
        kept = sum(store.products.nbytes for store in products._stores.values())
        assert kept <= memory


def test_products_that_are_there_are_not_made_again(monkeypatch):
    values = torch.randn(40, 7, generator=torch.Generator().manual_seed(6), dtype=F64)
    products = ProductCache(values, 1 << 20)
    products.of(0, torch.arange(0, 30))
    products.of(0, torch.arange(10, 40))
    products._values = torch.full_like(values, torch.nan)
    rows = torch.tensor([0, 3, 12, 31, 39])
    torch.testing.assert_close(products.of(0, rows), values[rows] @ values[rows].T)


@pytest.mark.parametrize("intercept", ["penalised", "free", "none"])
@pytest.mark.parametrize("kind", ["svm", "softmax"])
def test_image_and_adjoint_in_one_pass_are_those_of_two(kind, intercept, monkeypatch):
    monkeypatch.setattr("featx.heads.solver.linear_algebra.primal._CACHED_BYTES", 1)
    monkeypatch.setattr("featx.heads.solver.linear_algebra.primal._FEWEST_ROWS", 4)
    values, labels = clusters(per_class=5, width=6, seed=14)
    n = len(values)
    space = Primal(Blocks(values.astype(np.float64), None, Normalizer("none"), CPU, 1 << 30), intercept, 2.0, F64)
    generator = torch.Generator().manual_seed(7)
    costs = torch.rand(3 if kind == "svm" else 1, n, generator=generator, dtype=F64)
    signs = torch.where(torch.from_numpy(labels) == torch.arange(3)[:, None], 1.0, -1.0).double()
    loss = SquaredHinge(signs, costs) if kind == "svm" else CrossEntropy(torch.from_numpy(labels).long(), costs, 3)
    points = torch.randn(3, space.width, generator=generator, dtype=F64)
    curvature = loss.curvature(space.decision_function(torch.randn(3, space.width, generator=generator, dtype=F64)))
    image, adjoint = space.hessian_vector_product(
        points, lambda images, scores: loss.of_images(images).curvature_product(curvature[:, images], scores)
    )
    torch.testing.assert_close(image, space.decision_function(points))
    torch.testing.assert_close(
        adjoint, space.adjoint(loss.curvature_product(curvature, space.decision_function(points)))
    )


@pytest.mark.parametrize(("wrong", "proven"), [(0.0, True), (0.3, False)])
@pytest.mark.parametrize("intercept", ["penalised", "none"])
def test_the_gap_of_dual_variables_is_never_reported_smaller_than_it_is(intercept, wrong, proven):
    """With coefficients of the wrong sign, which are no dual variables; P and D by NumPy, in float64."""
    values, labels = clusters(per_class=12, width=50, seed=20)
    scaling, c = 1.5, 0.7
    blocks = Blocks(values, None, Normalizer("none"), CPU, 1 << 30)
    targets = Targets("svm", labels, 3)
    solver = Solver(blocks, targets, form="gram", intercept=intercept, scaling=scaling, tolerance=1e-1)
    solver.at(c)
    points, n = solver.coef(), len(values)
    signs = np.where(labels == np.arange(3)[:, None], 1.0, -1.0)
    least = points[:, :n].abs().argmin(1)
    points[torch.arange(3), least] = -wrong * torch.from_numpy(signs[range(3), least]).float()
    found = solver._proven(solver._space, points, c)
    features = np.concatenate([values, np.full((n, 1), scaling if intercept == "penalised" else 0.0)], 1)
    features = features.astype(np.float64)
    weights = np.concatenate([found.weights, found.bias[:, None] / scaling], 1)
    slack = np.maximum(0, 1 - signs * (weights @ features.T))
    primal = 0.5 * (weights**2).sum(1) + c * (slack**2).sum(1)
    duals = np.maximum(signs * points[:, :n].double().numpy(), 0)
    combined = (duals * signs) @ features
    gap = primal - (duals.sum(1) - 0.5 * (combined**2).sum(1) - (duals**2).sum(1) / (4 * c))
    assert found.certified.all() == proven
    if proven:
        assert (found.gaps >= gap * (1 - 1e-4) - 1e-6 * primal).all()
        assert (0.5 * ((weights - combined) ** 2).sum(1) > 0.1 * gap).all()  # it is what this test is about
    distances = np.linalg.norm(values.astype(np.float64) - values.astype(np.float64).mean(0), axis=1)
    assert (blocks.lengths.numpy() >= distances * (1 - 1e-6)).all()


# --- along a path of C


@pytest.mark.parametrize("intercept", ["penalised", "free", "none"])
@pytest.mark.parametrize("form", [Gram, Primal])
@pytest.mark.parametrize("line", [False, True], ids=["plane", "line"])
def test_the_extrapolate_ends_at_the_lowest_point_of_the_plane(form, intercept, line):
    """Where the slope along both directions, by finite differences of the objective, is 0, and below the start."""
    values, labels = clusters(per_class=8, width=6, seed=15)
    n = len(values)
    space = form(Blocks(values.astype(np.float64), None, Normalizer("none"), CPU, 1 << 30), intercept, 2.0, F64)
    generator = torch.Generator().manual_seed(8)
    loss = CrossEntropy(torch.from_numpy(labels).long(), torch.rand(2, n, generator=generator, dtype=F64), 3)
    now, before = (0.1 * torch.randn(6, space.width, generator=generator, dtype=F64) for _ in range(2))
    features = np.concatenate(
        [values.astype(np.float64), np.full((n, 1), 2.0 if intercept == "penalised" else 1.0)], 1
    )

    def f(points):
        """Per group, from the weights of the features as they are."""
        weights, bias = space.weights(points, F64)
        own = {"penalised": bias / 2, "free": torch.zeros_like(bias), "none": torch.zeros_like(bias)}[intercept]
        scores = torch.from_numpy(features[:, :-1]) @ weights.T + bias
        own_class = scores.view(n, 2, 3)[torch.arange(n), :, torch.from_numpy(labels).long()]
        lost = torch.logsumexp(scores.view(n, 2, 3), 2) - own_class
        square = weights.square().sum(1) + own.square()
        return 0.5 * square.view(2, 3).sum(1) + (loss.costs.T * lost).sum(0)

    state = State(now.clone(), space.decision_function(now), *(torch.zeros(2, dtype=F64) for _ in range(4)))
    extrapolate(space, loss, state, None if line else (before, space.decision_function(before)))
    torch.testing.assert_close(state.scores, space.decision_function(state.coef), rtol=1e-9, atol=1e-9)
    assert bool((f(state.coef) < f(now)).all())
    for direction in [now] if line else [now, before]:
        slope = (f(state.coef + 1e-5 * direction) - f(state.coef - 1e-5 * direction)) / 2e-5
        start = (f(now + 1e-5 * direction) - f(now - 1e-5 * direction)) / 2e-5
        assert bool((slope.abs() < 0.02 * start.abs() + 1e-4).all()), (slope, start)


@pytest.mark.parametrize("seed", range(8))
def test_a_extrapolate_never_leads_uphill(seed):
    """From points that are far off, where whole Newton steps would."""
    values, labels = clusters(per_class=8, width=6, seed=17)
    n = len(values)
    space = Primal(Blocks(values.astype(np.float64), None, Normalizer("none"), CPU, 1 << 30), "free", 1.0, F64)
    generator = torch.Generator().manual_seed(seed)
    loss = CrossEntropy(torch.from_numpy(labels).long(), 100 * torch.rand(4, n, generator=generator, dtype=F64), 3)
    now, before = (3 * torch.randn(12, space.width, generator=generator, dtype=F64) for _ in range(2))

    def f(state):
        bounded = state.coef[:, :-1].square().sum(1).view(4, 3).sum(1)
        return 0.5 * bounded + loss.value(space.decision_function(state.coef))

    state = State(now.clone(), space.decision_function(now), *(torch.zeros(4, dtype=F64) for _ in range(4)))
    start = f(state)
    extrapolate(space, loss, state, (before, space.decision_function(before)))
    assert bool((f(state) <= start * (1 + 1e-12)).all())


def test_where_weights_grow_like_c_the_extrapolate_is_the_optimum_and_its_scores_are_made_anew():
    values, labels = clusters(per_class=20, width=6, seed=18)
    for form in ("gram", "primal"):
        blocks = Blocks(values, None, Normalizer("none"), CPU, 1 << 30)
        solver = Solver(blocks, Targets("softmax", labels, 3), form=form, intercept="none")
        solver.at(1e-7)
        assert solver.steps == 1
        solver.at(1e-6)
        assert solver.steps == 1
        assert bool(solver._state.certified.all())
        if form == "primal":  # the other brings the coordinate of the mean to its optimum afterwards
            assert torch.equal(solver._state.scores, solver._space.decision_function(solver._state.coef))


def test_conjugate_gradients_over_small_blocks_are_those_over_one(monkeypatch):
    values, labels = clusters(per_class=8, width=6, seed=19)
    n = len(values)
    space = Primal(Blocks(values.astype(np.float64), None, Normalizer("none"), CPU, 1 << 30), "free", 1.0, F64)
    generator = torch.Generator().manual_seed(9)
    loss = CrossEntropy(torch.from_numpy(labels).long(), torch.rand(2, n, generator=generator, dtype=F64), 3)
    points = torch.randn(6, space.width, generator=generator, dtype=F64)
    state = State(points, space.decision_function(points), *(torch.zeros(2, dtype=F64) for _ in range(4)))
    gradient = points * torch.tensor([*[1.0] * 6, 0.0]) + space.adjoint(loss.residual(state.scores))
    asked = (space, loss, state, gradient, gradient, torch.full((2,), 50), torch.full((2,), 1e-3, dtype=F64))
    whole = conjugate_gradients(*asked)
    monkeypatch.setattr("featx.heads.solver.linear_algebra.primal._CACHED_BYTES", 1)
    monkeypatch.setattr("featx.heads.solver.linear_algebra.primal._FEWEST_ROWS", 5)
    parts = conjugate_gradients(*asked)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(whole[1], space.decision_function(whole[0]))


def test_a_extrapolate_from_nothing_stays_where_it_is():
    values, labels = clusters(per_class=4, width=5, seed=16)
    space = Primal(Blocks(values.astype(np.float64), None, Normalizer("none"), CPU, 1 << 30), "free", 1.0, F64)
    loss = CrossEntropy(torch.from_numpy(labels).long(), torch.ones(1, len(values), dtype=F64), 3)
    state = State.zero(space, 3, 3, len(values), CPU)
    extrapolate(space, loss, state, (state.coef.clone(), state.scores.clone()))
    assert not state.coef.any()
    assert not state.scores.any()


# --- optima


def objective(kind, features, labels, weights, bias, c):
    """Of heads in rows, in float64 by NumPy alone: per class for an SVM, one value for a softmax."""
    features, count = features.astype(np.float64), labels.max() + 1
    scores = features @ weights.T + bias
    if kind == "softmax":
        shifted = scores - scores.max(1, keepdims=True)
        lost = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]
        square = ((weights[1] - weights[0]) ** 2).sum() if count == 2 else (weights**2).sum()
        return np.array([0.5 * square + c * lost.sum()])
    signs = np.where(labels[:, None] == np.arange(count), 1, -1)
    whole = 0.5 * (weights**2).sum(1) + 0.5 * bias**2 + c * (np.maximum(0, 1 - signs * scores) ** 2).sum(0)
    return whole[1:] if count == 2 else whole


def scikit_learn(kind, features, labels, c):
    features = features.astype(np.float64)
    if kind == "svm":
        model = LinearSVC(C=c, tol=1e-8, dual=False, max_iter=2_000, random_state=0).fit(features, labels)
    else:
        model = LogisticRegression(C=c, tol=1e-8, max_iter=5_000).fit(features, labels)
    weights, bias = model.coef_, model.intercept_
    if len(weights) == 1:
        half = 1.0 if kind == "svm" else 0.5
        weights, bias = np.vstack([-half * weights, half * weights]), np.concatenate([-half * bias, half * bias])
    return objective(kind, features, labels, weights, bias, c)


@given(
    rows=st.integers(5, 40), width=st.integers(1, 50), classes=st.integers(2, 4), seed=st.integers(0, 10**6),
    offset=st.sampled_from([0.0, 1.0, 10.0]), apart=st.sampled_from([0.0, 1.0, 5.0]),
    c=st.sampled_from([1e-5, 1e-3, 0.1, 1.0, 100.0, 1e3, 1e5]), form=st.sampled_from(["gram", "primal"]),
    kind=st.sampled_from(["svm", "softmax"]), odd=st.sampled_from(["", "constant", "twice", "relu", "zero"]),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_optimum_is_scikit_learns_or_better_and_what_is_proven_is_true(
    rows, width, classes, seed, offset, apart, c, form, kind, odd
):
    generator = np.random.default_rng(seed)
    # The last class has one row only.
    labels = np.concatenate([np.arange(classes), generator.integers(0, max(classes - 1, 1), rows)])
    features = generator.normal(size=(len(labels), width)) + apart * generator.normal(size=(classes, width))[labels]
    features = (features + offset).astype(np.float32)
    match odd:
        case "constant":
            features[:, 0] = 3
        case "twice":
            features[1::2] = features[: len(features[1::2])]
        case "relu":
            features = np.maximum(features, 0)
        case "zero":
            features[0] = 0
    # More images than values leave a matrix of products without most of its rank: nobody would choose that form.
    found = solve(kind, features, labels, c, form=form if len(labels) <= 2 * width else None)
    values = objective(kind, features, labels, found.weights, found.bias, c)
    best = np.minimum(scikit_learn(kind, features, labels, c), values)
    assert found.certified.all() or c > 1e3
    np.testing.assert_allclose(found.values, values, rtol=1e-4)
    # f itself is known to 1e-5 where it is summed from products in float32.
    assert (values - best <= 1.01 * found.gaps + 1e-5 * best).all()
    assert (values <= best * (1 + 1e-4))[found.certified].all()


@pytest.mark.parametrize("form", ["gram", "primal"])
def test_a_softmax_is_as_near_its_optimum_as_decisions_on_unseen_images_need(form):
    """Ten times nearer than the folds of a search."""
    values, labels = clusters(per_class=30, width=80, seed=3)
    values += np.random.default_rng(0).normal(0, 0.5, values.shape).astype(np.float32)
    for c in 10 ** np.arange(-3, 1, 0.25):
        found = solve("softmax", values, labels, c, form=form)
        assert found.gaps <= 1.01e-5 * found.values  # true bounds: see the test above
    ours = objective("softmax", values, labels, found.weights, found.bias, c)
    assert ours <= scikit_learn("softmax", values, labels, c) * (1 + 1e-5)


@pytest.mark.parametrize("kind", ["svm", pytest.param("softmax", marks=pytest.mark.slow)])
def test_at_a_huge_c_what_cannot_be_proven_is_not_called_proven(kind):
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 3
    features = (generator.normal(size=(60, 20)) + 10).astype(np.float32)
    for c in (1e3, 1e5, 1e7):
        found = solve(kind, features, labels, c)
        best = np.minimum(solve(kind, features, labels, c, form="primal").values, found.values)
        assert (found.values - best <= found.gaps * (1 + 1e-6) + 1e-9 * best).all(), c


@pytest.mark.parametrize("kind", ["svm", "softmax"])
@pytest.mark.parametrize("form", ["gram", "primal"])
def test_streamed_from_a_file_the_heads_are_those_of_memory(tmp_path, kind, form, monkeypatch):
    monkeypatch.setattr("featx.heads.solver.linear_algebra.blocks.BLOCK_BYTES", 4000)
    values, labels = clusters(per_class=25, width=1100 if form == "gram" else 30, seed=4)
    values.tofile(tmp_path / "raw")
    mapped = np.memmap(tmp_path / "raw", np.float32, "r", shape=values.shape)
    rows = np.random.default_rng(0).permutation(len(values))[:60]
    found = []
    for source, resident in ((values, 1 << 30), (mapped, 0)):
        blocks = Blocks(source, rows, Normalizer("l2"), CPU, resident)
        assert blocks.resident == (resident > 0)
        solver = Solver(blocks, Targets(kind, labels[rows], 3), form=form, tolerance=1e-8)
        solver.at(1.0)
        found.append(solver.solution(solver.coef(), 1.0))
    assert all(one.certified.all() for one in found)
    np.testing.assert_allclose(found[1].weights, found[0].weights, atol=2e-4 * np.abs(found[0].weights).max())
    np.testing.assert_allclose(found[1].values, found[0].values, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("normalize", ["none", "l2", "standard"])
def test_features_on_the_device_are_read_as_those_in_memory(normalize, dtype, monkeypatch):
    monkeypatch.setattr("featx.heads.solver.linear_algebra.blocks.BLOCK_BYTES", 4000)
    monkeypatch.setattr("featx.heads.solver.linear_algebra.readers.BLOCK_BYTES", 4000)
    values, _ = clusters(per_class=25, width=1100, seed=4)
    values[:, 3], values[11] = 7.0, 0.0  # a constant column; a row without length but there
    values, digits = values.astype(dtype), 1e-12 if dtype == np.float64 else 1e-6
    for rows in (np.random.default_rng(0).permutation(len(values))[:60], np.arange(len(values))):
        for resident in (1 << 30, 0):
            found = []
            for source in (values, torch.from_numpy(values)):
                normalizer = normalizer_for(normalize, source, rows)
                blocks = Blocks(source, rows, normalizer, CPU, resident)
                parts = [block.numpy().copy() for _, block in blocks.columns(torch.float64)]
                whole = np.concatenate([block.numpy().copy() for _, block in blocks.rows(torch.float64)])
                np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
                found.append((whole, blocks.mean, blocks.lengths, blocks.variance))
            for ours, theirs in zip(*found, strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=digits, atol=digits * np.abs(found[0][0]).max())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_on_the_device_that_is_no_number_is_named(bad, monkeypatch):
    monkeypatch.setattr("featx.heads.solver.linear_algebra.blocks.BLOCK_BYTES", 100)
    values, labels = clusters(per_class=25, width=8, seed=4)
    values[[17, 30], 5] = bad
    rows = np.arange(10, 75)
    with pytest.raises(NonFiniteRow) as error:
        fit_heads(
            "svm", torch.from_numpy(values), rows, labels[rows], ["a", "b", "c"], c=1.0, folds=2, seed=0,
            normalize="l2", device=CPU, memory_bytes=1 << 30,
        )  # fmt: skip
    assert error.value.row == 17


@pytest.mark.parametrize("normalize", ["l2", "standard"])
@pytest.mark.parametrize("kind", ["svm", "softmax"])
def test_heads_of_features_on_the_device_are_those_of_the_array(kind, normalize):
    values, labels = clusters(per_class=25, width=40, seed=4)
    rows = np.random.default_rng(0).permutation(len(values))[:60]
    found = [
        fit_heads(
            kind, source, rows, labels[rows], ["a", "b", "c"], c=None, folds=3, seed=0, normalize=normalize,
            device=CPU, memory_bytes=1 << 30,
        )
        for source in (values, torch.from_numpy(values))
    ]  # fmt: skip
    assert found[0].c == found[1].c
    assert not found[1].uncertified
    np.testing.assert_allclose(found[1].weights, found[0].weights, atol=1e-3 * np.abs(found[0].weights).max())


@pytest.mark.parametrize("intercept", ["penalised", "free", "none"])
@pytest.mark.parametrize("kind", ["svm", "softmax"])
def test_without_room_for_any_matrix_the_optimum_is_the_same(kind, intercept):
    values, labels = clusters(per_class=40, width=60, seed=21)
    values[:, ::5] *= 30  # what a diagonal has to make up for
    blocks = Blocks(values, None, Normalizer("none"), CPU, 1 << 30)
    found = []
    for memory in (1 << 30, 10_000):
        solver = Solver(blocks, Targets(kind, labels, 3), intercept=intercept, tolerance=1e-7, memory_bytes=memory)
        assert solver.form == ("gram" if memory > 10_000 else "primal")
        solver.at(0.03)
        found.append(solver.solution(solver.coef(), 0.03))
        assert found[-1].certified.all()
        assert solver.steps < 60
    np.testing.assert_allclose(found[1].values, found[0].values, rtol=1e-6)
    np.testing.assert_allclose(found[1].weights, found[0].weights, atol=1e-3 * np.abs(found[0].weights).max())


@pytest.mark.parametrize("kind", ["svm", "softmax"])
def test_permuted_rows_and_classes_give_the_permuted_heads(kind):
    values, labels = clusters(classes=4, seed=9)
    generator = np.random.default_rng(1)
    rows, classes = generator.permutation(len(values)), generator.permutation(4)
    plain = solve(kind, values, labels, 0.3, tolerance=1e-9)
    other = solve(kind, values[rows], classes[labels][rows], 0.3, tolerance=1e-9)
    np.testing.assert_allclose(other.weights[classes], plain.weights, atol=1e-4 * np.abs(plain.weights).max())


@pytest.mark.parametrize("form", ["gram", "primal"])
@pytest.mark.parametrize("kind", ["svm", "softmax"])
def test_folds_are_fits_without_their_rows(kind, form):
    values, labels = clusters(per_class=20, seed=11)
    held_out = np.arange(len(values))[None] % 3 == np.arange(3)[:, None]
    blocks = Blocks(values, None, Normalizer("none"), CPU, 1 << 30)
    solver = Solver(blocks, Targets(kind, labels, 3), held_out=held_out, form=form, tolerance=1e-9)
    for c in (0.01, 1.0):  # the second one starts warm
        solver.at(c)
        assert not solver.uncertified
        for fold, left_out in enumerate(held_out):
            alone = solve(kind, values[~left_out], labels[~left_out], c, tolerance=1e-9)
            expected = values.astype(float) @ alone.weights.T + alone.bias
            scores = solver.scores(1 + fold).T.numpy()
            if kind == "softmax":
                scores, expected = (s - s.mean(1, keepdims=True) for s in (scores, expected))
            np.testing.assert_allclose(scores, expected, atol=2e-3)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("kind", ["svm", "softmax"])
def test_class_and_sample_weights_mean_what_they_mean_in_scikit_learn(kind, classes):
    values, labels = clusters(classes=classes, seed=12, width=5)
    generator = np.random.default_rng(2)
    each, of_class = generator.uniform(0.2, 3, len(values)), generator.uniform(0.2, 3, classes)
    blocks = Blocks(values, None, Normalizer("none"), CPU, 1 << 30)
    solver = Solver(blocks, Targets(kind, labels, classes, each, of_class), tolerance=1e-12)
    solver.at(0.1)
    found = solver.solution(solver.coef(), 0.1)
    limits = {"class_weight": dict(enumerate(of_class)), "C": 0.1, "tol": 1e-10}
    if kind == "svm":
        model = LinearSVC(random_state=0, dual=False, max_iter=10**6, **limits)
    else:
        model = LogisticRegression(max_iter=5000, **limits)
    model.fit(values.astype(float), labels, sample_weight=each)
    scores = values.astype(float) @ found.weights.T + found.bias
    expected = model.decision_function(values.astype(float))
    if classes == 2:
        scores = scores[:, 1] * (1 if kind == "svm" else 2)
    elif kind == "softmax":
        scores, expected = (s - s.mean(1, keepdims=True) for s in (scores, expected))
    np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_without_room_for_float64_what_stalls_is_listed_by_class_c_and_fold():
    generator = np.random.default_rng(0)
    labels = np.arange(120) % 3
    features = (generator.normal(size=(120, 60)) + 10).astype(np.float32)
    blocks = Blocks(features, None, Normalizer("none"), CPU, 1 << 30)
    held_out = np.arange(120)[None] % 4 == np.arange(4)[:, None]
    solver = Solver(blocks, Targets("svm", labels, 3), held_out=held_out, form="gram", memory_bytes=8 * 120**2 - 1)
    roomy = Solver(blocks, Targets("svm", labels, 3), held_out=held_out, form="gram")
    roomy.at(1e6)
    assert not roomy.uncertified
    solver.at(1e6)
    assert solver.uncertified
    assert {one.problem for one in solver.uncertified} <= {0, 1, 2}
    assert {one.fold for one in solver.uncertified} <= {None, 0, 1, 2, 3}
    assert all(one.c == 1e6 and one.gap > 1e-4 for one in solver.uncertified)


@pytest.mark.parametrize("kind", ["svm", "softmax"])
@pytest.mark.parametrize("scale", [1e17, 1e25])
def test_rows_that_are_too_long_for_float32_are_refused(kind, scale):
    values, labels = clusters()
    with pytest.raises(UsageError, match=r"rows longer than 1e\+15, .* .--normalize l2"):
        solve(kind, (values * scale).astype(np.float32), labels, 1.0)
    blocks = Blocks((values * scale).astype(np.float32), None, Normalizer("l2"), torch.device("cpu"), 1 << 20)
    assert blocks.variance < 1


def test_a_row_with_nan_is_named():
    values, labels = clusters()
    values[17, 3] = np.nan
    with pytest.raises(NonFiniteRow, match="row 17 "):
        solve("svm", values, labels, 1.0)


def test_the_largest_eigenpairs_are_those_of_the_matrix_where_they_lie_apart():
    generator = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(80, 80, generator=generator, dtype=torch.float64))[0]
    matrix = (basis * 2.0 ** -torch.arange(80)) @ basis.T
    vectors, images, values = largest_eigenpairs(matrix, 12)
    torch.testing.assert_close(images, matrix @ vectors)
    torch.testing.assert_close(vectors.T @ images, torch.diag(values), rtol=0, atol=1e-12)
    torch.testing.assert_close(values, 2.0 ** -torch.arange(12, dtype=torch.float64), rtol=1e-4, atol=0.0)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(12, dtype=torch.float64))
    torch.testing.assert_close(
        (vectors.T @ basis[:, :12]).abs(), torch.eye(12, dtype=torch.float64), rtol=0, atol=0.02
    )
    assert largest_eigenpairs(torch.zeros(5, 5), 0)[2].shape == (0,)


@pytest.mark.parametrize("curvature", [0.0, 1e-3, 50.0])
def test_the_gram_forms_preconditioner_is_symmetric_and_positive_in_its_metric(curvature):
    """Else conjugate gradients are none."""
    values = np.random.default_rng(0).gamma(0.5, size=(90, 40)) ** 2
    blocks = Blocks(values, None, Normalizer("none"), torch.device("cpu"), 1 << 30)
    for intercept in ("penalised", "free", "none"):
        space = Gram(blocks, intercept, 1.0, torch.float64)
        space.prepare(curvature)
        points = torch.randn(space.width, space.width, generator=torch.Generator().manual_seed(0)).double()
        changed = space.precondition(points)
        images = space.decision_function(changed)
        pairs = torch.stack(
            [
                space.dot(points, other.expand_as(points), image.expand(space.width, -1))
                for other, image in zip(changed, images, strict=True)
            ]
        )
        torch.testing.assert_close(pairs, pairs.T, rtol=1e-6, atol=1e-6 * float(pairs.abs().max()))
        assert float(pairs.diagonal().min()) >= -1e-9 * float(pairs.abs().max())
