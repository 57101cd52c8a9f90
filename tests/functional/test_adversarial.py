"""Critics' losses and penalties: values by hand, and the theory of Lipschitz critics on problems solved exactly.

On a finite support the best critic solves a convex program in its values there and its Lipschitz constant k: minimise
sum p_fake phi(f) + sum p_real phi(-f) + lambda k^2 subject to |f_i - f_j| <= k |x_i - x_j|. Such values extend to the
whole space with the same constant (McShane 1934).
"""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import wasserstein_distance

from lckd_mm.functional import convex_phi, gradient_norms, product_bound
from lckd_mm.functional.adversarial import PHIS
from lckd_mm.losses import LGANLoss

STRICT = ('exp', 'softplus', 'sqrt')


def test_phi_by_hand():
    x = torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64)
    root5, root10 = 5**0.5, 10**0.5
    expected = {
        'x': [-2, 0, 3],
        'exp': [math.exp(-2), 1, math.exp(3)],
        'softplus': [math.log1p(math.exp(-2)), math.log(2), math.log1p(math.exp(3))],
        'sqrt': [root5 - 2, 1, root10 + 3],
    }
    assert set(expected) == set(PHIS)
    for phi, values in expected.items():
        torch.testing.assert_close(convex_phi(x, phi), torch.tensor(values, dtype=torch.float64))
    with pytest.raises(ValueError, match="unknown phi 'log'"):
        convex_phi(x, 'log')


@pytest.mark.parametrize('phi', PHIS)
def test_phi_rises_and_is_convex_and_finite_in_float32(phi):
    x = torch.tensor([-1e30, -1e4, -90.0, -1.0, 0.0, 1.0, 39.0, 41.0, 200.0, 1e15], requires_grad=True)
    y = convex_phi(x, phi)
    (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert torch.isfinite(y).all() and torch.isfinite(slope).all() and torch.isfinite(slope.square()).all()
    assert (slope >= 0).all() and (slope[1:] >= slope[:-1]).all() and (y[1:] >= y[:-1]).all()
    if phi == 'sqrt':  # 1e4 would cancel to 0
        torch.testing.assert_close(y[1].item(), 0.5e-4, rtol=1e-6, atol=0)
    if phi in STRICT:
        (bend,) = torch.autograd.grad(slope.sum(), x)
        assert torch.isfinite(bend).all() and (bend[3:6] > 0).all()


@pytest.mark.parametrize('phi', PHIS)
def test_phi_has_its_derivatives(phi):
    x = torch.tensor([-3.1, -0.4, 0.7, 2.3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: convex_phi(v, phi), x)
    assert torch.autograd.gradgradcheck(lambda v: convex_phi(v, phi), x)


def test_gradient_norms_of_a_known_function_and_through_it():
    weight = torch.tensor([3.0, 4.0], dtype=torch.float64, requires_grad=True)
    norms = gradient_norms(lambda x: (x @ weight).square(), torch.tensor([[1.0, 0.0], [0.0, 0.0]]).double())
    # |2 (w.x) w|: 2 * 3 * 5, and 0 at 0
    assert norms.tolist() == [30.0, 0.0]
    (grad,) = torch.autograd.grad(norms.sum(), weight)
    # d (2 w_1 |w|) = 2 |w| + 2 w_1^2 / |w|, 2 w_1 w_2 / |w|: finite at the flat point too
    torch.testing.assert_close(grad, torch.tensor([10 + 18 / 5, 24 / 5], dtype=torch.float64))
    assert gradient_norms(lambda x: torch.ones(len(x)), torch.rand(3, 2)).tolist() == [0, 0, 0]
    with torch.no_grad():  # as in the rehearsal of a term
        assert gradient_norms(lambda x: x.square().sum(1) / 2, torch.tensor([[3.0, 4.0]])).item() == 5.0


def test_gradient_norms_have_their_gradient_by_the_critic():
    torch.manual_seed(0)
    x = torch.randn(5, 3, dtype=torch.float64)
    w1, w2 = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((3, 4), (4,)))

    def penalty(w1, w2):
        return (gradient_norms(lambda v: (v @ w1).tanh() @ w2, x) - 1).square().mean()

    assert torch.autograd.gradcheck(penalty, (w1, w2))


def test_product_bound_has_its_exact_gradient():
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(2, 3, 3, 2, 1), torch.nn.LeakyReLU(0.2), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        torch.nn.Linear(3, 1),
    ).double()  # fmt: skip
    x = torch.zeros(1, 2, 6, 6, dtype=torch.float64)
    weights = [net[0].weight, net[4].weight]
    with_gradient = product_bound(net, x, 1e-9)
    gradients = torch.autograd.grad(with_gradient, weights)
    for weight, gradient in zip(weights, gradients):
        direction = torch.randn_like(weight)
        with torch.no_grad():
            ends = []
            for step in (1e-5, -2e-5):
                weight += step * direction
                ends.append(product_bound(net, x, 1e-12))
            weight += 1e-5 * direction
        torch.testing.assert_close((gradient * direction).sum(), (ends[0] - ends[1]) / 2e-5, rtol=1e-6, atol=1e-9)
    # Homogeneous of degree one in each layer's weight (Euler).
    for weight, gradient in zip(weights, gradients):
        torch.testing.assert_close((gradient * weight).sum(), with_gradient)


# ---- the theory, on finite supports -------------------------------------------------------------------------------


def best_critic(fake, real, phi, weight=0.1, start=None):
    """Values at the fake and the real points and the Lipschitz constant, by the convex program; points (n, d)."""
    points = np.concatenate([fake, real])
    n, m = len(points), len(fake)
    rows = []
    for i in range(n):
        for j in range(n):
            if i != j:
                row = np.zeros(n + 1)
                row[i], row[j], row[n] = -1, 1, np.linalg.norm(points[i] - points[j])
                rows.append(row)
    rows.append(np.eye(n + 1)[n])
    rows = np.array(rows)

    def objective(x):
        x = torch.tensor(x, requires_grad=True)
        value = LGANLoss(phi).critic(x[:m], x[m:n]) + weight * x[n].square()
        return value.item(), torch.autograd.grad(value, x)[0].numpy()

    start = np.append(np.zeros(n), 1.0) if start is None else start
    found = minimize(
        objective, start, jac=True, method='SLSQP', options=dict(maxiter=1000, ftol=1e-15),
        constraints=dict(type='ineq', fun=lambda x: rows @ x, jac=lambda x: rows),
    )  # fmt: skip
    return torch.tensor(found.x[:m]), torch.tensor(found.x[m:n]), found.x[n], found.fun


def extended(fake, real, values, k):
    """The least extension of the values with the constant k."""
    points, values = torch.tensor(np.concatenate([fake, real])), torch.cat(values)
    return lambda x: (values + k * (x[:, None] - points).square().sum(-1).clamp(min=1e-30).sqrt()).amin(1)


@pytest.fixture(scope='module')
def clouds():
    rng = np.random.default_rng(0)
    return rng.normal(size=(4, 2)), rng.normal(size=(4, 2)) + np.array([2.0, 0.5])


def test_one_point_on_each_side_is_solved_by_hand():
    # J = 2 phi(-k d / 2) + lambda k^2: for phi(x) = x the constant is d / (2 lambda)
    fake, real, k, _ = best_critic(np.zeros((1, 1)), np.full((1, 1), 0.5), 'x', 0.1)
    assert k == pytest.approx(2.5, rel=1e-6) and (real - fake).item() == pytest.approx(1.25, rel=1e-6)
    # for softplus d sigmoid(-k d / 2) = 2 lambda k
    fake, real, k, _ = best_critic(np.zeros((1, 1)), np.full((1, 1), 2.0), 'softplus', 0.1)
    assert 2 / (1 + math.exp(k)) == pytest.approx(0.2 * k, rel=1e-5)
    assert fake.item() == pytest.approx(-k) and real.item() == pytest.approx(k)


def test_with_the_identity_the_constant_is_the_wasserstein_distance_over_two_lambda():
    fake, real = np.array([[0.0], [1.0], [4.0]]), np.array([[2.0], [2.5], [7.0]])
    _, _, k, value = best_critic(fake, real, 'x', 0.25)
    distance = wasserstein_distance(fake[:, 0], real[:, 0])
    assert k == pytest.approx(distance / 0.5, rel=1e-5)
    assert value == pytest.approx(-(distance**2), rel=1e-5)  # - k W + lambda k^2


@pytest.mark.parametrize('phi', STRICT)
def test_fact_1_the_best_critic_exists_and_is_unique_where_phi_is_strictly_convex(phi, clouds):
    fake, real = clouds
    rng = np.random.default_rng(1)
    found = [best_critic(fake, real, phi, start=np.append(rng.normal(size=8), 3.0)) for _ in range(3)]
    for values in found[1:]:
        for a, b in zip(values[:2], found[0][:2]):
            torch.testing.assert_close(a, b, rtol=0, atol=2e-4)
        assert values[2] == pytest.approx(found[0][2], abs=1e-4)
    # with the identity any constant may be added
    a, b, _, _ = best_critic(fake, real, 'x')
    plain, strict = LGANLoss('x'), LGANLoss(phi)
    torch.testing.assert_close(plain.critic(a + 5, b + 5), plain.critic(a, b))
    assert strict.critic(a + 5, b + 5) > strict.critic(a, b) + 0.1


@pytest.mark.parametrize('phi', PHIS)
def test_fact_2_every_point_is_bound_to_one_on_the_other_side(phi, clouds):
    fake, real = clouds
    f, r, k, _ = best_critic(fake, real, phi)
    assert k > 0.1
    distance = torch.cdist(torch.tensor(fake), torch.tensor(real))
    tightness = (r[None] - f[:, None]) / (k * distance)
    assert tightness.max() <= 1 + 1e-6  # k is its constant
    for side in (0, 1):
        torch.testing.assert_close(tightness.amax(1 - side), torch.ones(4).double(), rtol=0, atol=1e-3)


@pytest.mark.parametrize('phi', PHIS)
def test_fact_3_the_gradient_between_bound_points_leads_from_fake_to_real(phi, clouds):
    fake, real = clouds
    f, r, k, _ = best_critic(fake, real, phi)
    critic = extended(fake, real, (f, r), k)
    x, y = torch.tensor(fake), torch.tensor(real)
    partner = ((r[None] - f[:, None]) / torch.cdist(x, y)).argmax(1)
    between = (0.7 * x + 0.3 * y[partner]).requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between)
    way = torch.nn.functional.normalize(y[partner] - x)
    torch.testing.assert_close(slope, k * way, rtol=1e-3, atol=1e-3)
    # there the largest slope is k, and nowhere is it more
    assert gradient_norms(critic, between).amax().item() == pytest.approx(k, rel=1e-6)
    torch.manual_seed(0)
    anywhere = 3 * torch.randn(500, 2, dtype=torch.float64)
    assert gradient_norms(critic, anywhere).amax().item() <= k * (1 + 1e-6)


@pytest.mark.parametrize('phi', STRICT)
def test_fact_4_only_equal_distributions_are_at_rest(phi):
    real = np.array([[0.0], [1.0], [2.5]])
    f, r, k, _ = best_critic(real, real[::-1].copy(), phi)
    assert abs(k) < 1e-3 and f.abs().max() < 1e-3 and r.abs().max() < 1e-3
    # Anywhere else the gradient at the fake points is k > 0, and leads them nearer.
    fake = np.array([[-3.0], [-2.0], [-1.5]])
    distances, constants = [], []
    for _ in range(6):
        f, r, k, _ = best_critic(fake, real, phi)
        distances.append(wasserstein_distance(fake[:, 0], real[:, 0]))
        constants.append(k)
        tightness = (r[None] - f[:, None]).numpy() / np.abs(fake - real.T)
        fake = fake + 0.25 * np.sign(real[tightness.argmax(1)] - fake)
    assert np.allclose(np.diff(distances), -0.25)
    assert min(constants) > 0.1


def test_a_small_net_comes_near_the_best_critic():
    torch.manual_seed(0)
    fake, real = np.array([[-2.0], [-1.0]]), np.array([[1.0], [1.5]])
    f, r, k, _ = best_critic(fake, real, 'softplus', 0.1)
    net = torch.nn.Sequential(
        torch.nn.Linear(1, 32), torch.nn.LeakyReLU(0.2), torch.nn.Linear(32, 32), torch.nn.LeakyReLU(0.2),
        torch.nn.Linear(32, 1), torch.nn.Flatten(0),
    ).double()  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    x, y = torch.tensor(fake), torch.tensor(real)
    for step in range(600):
        for group in optimizer.param_groups:
            group['lr'] = 5e-3 * (1 - step / 600)
        points = torch.lerp(x.repeat_interleave(16, 0), y.repeat(16, 1), torch.rand(32, 1, dtype=torch.float64))
        value = LGANLoss().critic(net(x), net(y)) + 0.1 * gradient_norms(net, points).amax().square()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    with torch.no_grad():
        torch.testing.assert_close(net(x), f, rtol=0, atol=0.1)
        torch.testing.assert_close(net(y), r, rtol=0, atol=0.1)
    assert gradient_norms(net, points).amax().item() == pytest.approx(k, rel=0.1)
