"""Networks: shapes, linear maps, broadcasting over models and samples, and users' own modules."""

import pytest
import torch
from torch import nn

from skvae.networks import MLP, Module, build_module

MLPS = [MLP(()), MLP((7,)), MLP((7, 5), activation="relu"), MLP((7,), activation="tanh", skip=False), MLP(4, activation="gelu")]


def params_of(network, n_in=3, n_out=2, seed=0):
    return network.init(n_in, n_out, seed)


@pytest.mark.parametrize("network", MLPS, ids=repr)
def test_init_has_the_declared_shapes_and_is_a_function_of_the_seed(network):
    first, again, other = (params_of(network, seed=s) for s in (0, 0, 1))
    assert {k: tuple(v.shape) for k, v in first.items()} == network.shapes(3, 2, 0)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_forward_is_the_network_of_torch():
    network = MLP((7, 5), activation="silu", skip=False)
    params = params_of(network)
    reference = nn.Sequential(nn.Linear(3, 7), nn.SiLU(), nn.Linear(7, 5), nn.SiLU(), nn.Linear(5, 2)).double()
    for i, layer in enumerate(reference[::2]):
        layer.weight.data, layer.bias.data = params[f"weight{i}"].T.clone(), params[f"bias{i}"][0].clone()
    x = torch.randn(6, 3, dtype=torch.float64)
    torch.testing.assert_close(network.forward(params, x), reference(x))


@pytest.mark.parametrize("network", [n for n in MLPS if n.has_linear_path()], ids=repr)
def test_a_linear_map_that_is_set_is_the_map_that_is_computed(network):
    params = params_of(network)
    g = torch.Generator().manual_seed(0)
    weight, bias, x = (torch.randn(s, generator=g, dtype=torch.float64) for s in ((3, 2), (1, 2), (6, 3)))
    params[f"weight{network.n_hidden()}"].zero_()  # what the hidden layers add
    network.set_linear(params, weight, bias)
    torch.testing.assert_close(network.forward(params, x), x @ weight + bias)


@pytest.mark.parametrize("network", MLPS, ids=repr)
def test_leading_axes_broadcast(network):
    """Parameters of many models (m, 1, ...) and samples (m, s, n, k) give what a loop over models gives."""
    models = [params_of(network, seed=s) for s in range(4)]
    stacked = {k: torch.stack([m[k] for m in models])[:, None] for k in models[0]}
    x = torch.randn(4, 5, 6, 3, dtype=torch.float64)
    together = network.forward(stacked, x)
    for m, params in enumerate(models):
        torch.testing.assert_close(together[m], network.forward(params, x[m]))


@pytest.mark.parametrize("sizes", [(), (5,), (16,), (33, 7), (48, 16)])
@pytest.mark.parametrize("activation", ["silu", "relu", "gelu", "tanh", "identity"])
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("widths", [(3, 5), (7, 16), (1, 1), (40, 31)])
def test_aligned_parameters_are_those_of_the_same_map(sizes, activation, skip, widths):
    network = MLP(sizes, activation=activation, skip=skip)
    params = {k: v + 0.1 for k, v in network.init(*widths, seed=0).items()}
    x = torch.randn((2, 6, widths[0]), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = network.forward(params, x)
    with torch.inference_mode():
        for same in (params, network.aligned(params)):
            found = network.forward(same, x)
            assert found.shape == expected.shape
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sizes", [(0,), (3, -1), ("a",), (2.5,)])
def test_impossible_layer_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="positive whole numbers"):
        MLP(sizes).validate()


def small_net(n_in, n_out):
    return nn.Sequential(nn.Linear(n_in, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, n_out))


def test_a_users_module_takes_part_through_its_trainable_parameters():
    bound = Module(small_net).bind(3, 2, 0)
    params = bound.init(3, 2, 0)
    assert {k: tuple(v.shape) for k, v in params.items()} == bound.shapes(3, 2, 0)
    x = torch.randn(4, 6, 3, dtype=torch.float64)
    shifted = {k: v + 0.1 for k, v in params.items()}
    assert bound.forward(params, x).shape == (4, 6, 2)
    assert not torch.allclose(bound.forward(params, x), bound.forward(shifted, x))


def test_frozen_parameters_of_a_module_stay_out():
    def half_frozen(n_in, n_out):
        net = small_net(n_in, n_out)
        net[0].requires_grad_(False)
        return net

    assert not any(name.startswith("0.") for name in Module(half_frozen).bind(3, 2, 0).shapes(3, 2, 0))


def test_modules_are_a_function_of_the_seed_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    first, again, other = (build_module(small_net, 3, 2, seed)[0].weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(8), nn.Dropout(0.5)], ids=repr)
def test_layers_that_mix_rows_or_draw_noise_are_refused(layer):
    with pytest.raises(ValueError, match="Every row must be mapped by itself"):
        build_module(lambda n_in, n_out: nn.Sequential(nn.Linear(n_in, 8), layer, nn.Linear(8, n_out)), 3, 2, 0)


def test_a_factory_that_makes_no_module_is_refused():
    with pytest.raises(TypeError, match=r"must return a torch\.nn\.Module, got int"):
        build_module(lambda n_in, n_out: 3, 3, 2, 0)


@pytest.mark.parametrize("skip", [True, False])
def test_the_scale_of_the_initial_numbers_can_be_chosen(skip):
    params = MLP((200,), skip=skip, init_std=0.01).init(300, 100, seed=0)
    for value in params.values():
        assert float(value.std()) == pytest.approx(0.01, rel=0.25)
    weights = MLP((200,), skip=skip).init(300, 100, seed=0)
    assert float(weights["weight0"].std()) == pytest.approx((2 / 300) ** 0.5, rel=0.05)
    assert not weights["bias0"].any()


@pytest.mark.parametrize("init_std", [0, -1.0, "small"])
def test_an_impossible_scale_is_refused(init_std):
    with pytest.raises(ValueError, match="The 'init_std' parameter of MLP"):
        MLP(init_std=init_std).validate()
