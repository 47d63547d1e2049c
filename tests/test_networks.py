"""Networks: shapes, linear maps, broadcasting over models and samples, and users' own modules."""

from functools import partial

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import nn

from skvae import VAETransformer
from skvae.likelihoods import Bernoulli, Gaussian
from skvae.networks import MLP, Conv, ConvTranspose, Module, Network, build_module

MLPS = [MLP(()), MLP((7,)), MLP((7, 5), activation="relu"), MLP((7,), activation="tanh", skip=False), MLP(4, activation="gelu")]


def params_of(network, n_in=3, n_out=2, seed=0):
    return network.init(n_in, n_out, seed)


@pytest.mark.parametrize("sizes", [8, np.int64(8), [8], np.array([8])], ids=repr)
def test_networks_of_the_same_sizes_are_equal(sizes):
    assert MLP(sizes) == MLP((8,))
    assert MLP(sizes) != MLP((8, 8))
    assert Conv(np.array([4, 8])) == Conv([4, 8]) == Conv((4, 8)) != Conv((8, 4))


def test_later_changes_of_an_array_of_sizes_do_not_reach_the_fitted_network():
    sizes = np.array([8])
    vae = VAETransformer(2, hidden_layer_sizes=sizes, max_iter=2, learning_rate="cosine").fit(np.eye(20, 3))
    sizes[0] = 9
    with pytest.raises(ValueError, match="encoder and decoder differ"):
        vae.partial_fit(np.eye(20, 3))


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


class Pair(nn.Module):
    """Gives two tensors."""

    def forward(self, x):
        return x, x


@pytest.mark.parametrize(
    "factory, match",
    [
        (lambda n_in, n_out: nn.Linear(n_in, n_out + 1), r"gives a tensor of shape \(2, 3\).*n_in=3 .* n_out=2"),
        (lambda n_in, n_out: nn.Linear(n_in + 1, n_out), r"cannot read a row: .*n_in=3 .* n_out=2"),
        (lambda n_in, n_out: nn.Sequential(nn.Linear(n_in, n_out), nn.Flatten(0)), r"gives a tensor of shape \(4,\)"),
        (lambda n_in, n_out: Pair(), "gives a tuple"),
    ],
)
def test_a_module_of_other_sizes_is_refused_with_both(factory, match):
    with pytest.raises(ValueError, match=match):
        build_module(factory, 3, 2, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_looking_at_the_sizes_changes_nothing(dtype):
    def noisy(n_in, n_out):
        return nn.Sequential(nn.Linear(n_in, n_out, dtype=dtype), Noise())

    before = torch.random.get_rng_state()
    module = build_module(noisy, 3, 2, 0)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(p.grad is None for p in module.parameters())


class Noise(nn.Module):
    """Draws from torch's global stream."""

    def forward(self, x):
        return x + torch.rand_like(x)


class Built:
    """A factory with a memory of its own, of which a copy is not equal to it."""

    def __call__(self, n_in, n_out):
        return torch.nn.Linear(n_in, n_out)


@pytest.mark.parametrize("factory", [Built(), partial(torch.nn.Linear, bias=True)], ids=["object", "partial"])
def test_training_goes_on_with_a_factory_that_is_no_function(factory):
    X = np.random.default_rng(0).normal(size=(40, 3))
    vae = VAETransformer(1, encoder=Module(factory), random_state=0).partial_fit(X)
    assert vae.partial_fit(X).n_iter_ == 2
    assert clone(vae).encoder.factory is factory


class Wider(Module):
    """A module of one's own with a parameter of its own."""

    def __init__(self, factory, width=3):
        super().__init__(factory)
        self.width = width


def test_a_clone_of_a_module_keeps_all_of_its_parameters():
    copied = clone(Wider(Built(), width=9))
    assert type(copied) is Wider and copied.width == 9


def test_a_factory_that_makes_no_module_is_refused():
    with pytest.raises(TypeError, match=r"must return a torch\.nn\.Module, got int"):
        build_module(lambda n_in, n_out: 3, 3, 2, 0)


@pytest.mark.parametrize(
    ("network", "what"), [(MLP, "the class .*MLP"), (torch.nn.Linear(3, 2), "the module Linear")], ids=["class", "module"]
)
def test_what_is_neither_network_nor_factory_is_refused(network, what):
    with pytest.raises(TypeError, match=f"must be an object such as MLP.*, or a function.*{what}"):
        VAETransformer(2, encoder=network).fit(np.eye(20, 3))


# --- images --------------------------------------------------------------------------------------------------------------

IMAGES = [
    # input_shape, columns, channels of the encoder, kernel_size
    (None, 64, (4, 6), 3),
    ((8, 8), 64, (4,), 1),
    ((7, 5), 35, (4, 6, 8), 3),
    ((6, 9, 3), 162, (4, 6), 5),
    ((1, 4), 4, (3, 2), 3),
]


def image_networks(input_shape, channels, kernel_size):
    encoder = Conv(input_shape, channels=channels, kernel_size=kernel_size)
    return encoder, ConvTranspose(input_shape, channels=channels[::-1], kernel_size=kernel_size)


def random_params(bound, *sizes):
    stream = torch.Generator().manual_seed(0)
    return {k: torch.randn(s, generator=stream, dtype=torch.float64) for k, s in bound.shapes(*sizes, 0).items()}


def pixels(x, input_shape):
    """Return rows as torch takes images: (rows, channels, height, width)."""
    height, width, n_channels = (*(input_shape or (8, 8)), 1)[:3]
    return x.view(len(x), height, width, n_channels).permute(0, 3, 1, 2)


@pytest.mark.parametrize(("input_shape", "d", "channels", "kernel_size"), IMAGES)
def test_convolutions_are_those_of_torch(input_shape, d, channels, kernel_size):
    bound = image_networks(input_shape, channels, kernel_size)[0].bind(d, 4, 0)
    params = random_params(bound, d, 4)
    x = torch.randn(6, d, dtype=torch.float64)
    out = pixels(x, input_shape)
    for i, n_channels in enumerate(channels):
        layer = nn.Conv2d(out.shape[1], n_channels, kernel_size, stride=2, padding=kernel_size // 2).double()
        layer.weight.data, layer.bias.data = params[f"weight{i}"], params[f"bias{i}"]
        out = nn.functional.silu(layer(out))
    last = len(channels)
    expected = out.movedim(1, -1).flatten(1) @ params[f"weight{last}"] + params[f"bias{last}"]
    torch.testing.assert_close(bound.forward(params, x), expected)


@pytest.mark.parametrize("n_images", [1, 2])
@pytest.mark.parametrize(("input_shape", "d", "channels", "kernel_size"), IMAGES)
def test_transposed_convolutions_are_those_of_torch(input_shape, d, channels, kernel_size, n_images):
    bound = image_networks(input_shape, channels, kernel_size)[1].bind(3, n_images * d, 0)
    params = random_params(bound, 3, n_images * d)
    z = torch.randn(6, 3, dtype=torch.float64)
    image = pixels(torch.zeros(1, d), input_shape).shape[1:]
    sizes = [image[1:]]
    for _ in channels:
        sizes.insert(0, tuple(-(-n // 2) for n in sizes[0]))
    out = (z @ params["weight0"] + params["bias0"]).unflatten(1, (*sizes[0], channels[-1])).movedim(-1, 1)
    for i, n_channels in enumerate([*channels[-2::-1], n_images * image[0]], 1):
        layer = nn.ConvTranspose2d(out.shape[1], n_channels, kernel_size, stride=2, padding=kernel_size // 2).double()
        layer.weight.data, layer.bias.data = params[f"weight{i}"], params[f"bias{i}"]
        out = layer(nn.functional.silu(out), output_size=sizes[i])
    found = bound.forward(params, z).view(6 * n_images, d)
    torch.testing.assert_close(pixels(found, input_shape), out.reshape(6 * n_images, *image))


@pytest.mark.parametrize(("input_shape", "d", "channels", "kernel_size"), IMAGES)
def test_networks_for_images_keep_leading_axes_and_align_without_a_change(input_shape, d, channels, kernel_size):
    for network, n_in, n_out in zip(image_networks(input_shape, channels, kernel_size), (d, 3), (4, d), strict=True):
        bound = network.bind(n_in, n_out, 0)
        params = random_params(bound, n_in, n_out)
        x = torch.randn(2, 5, n_in, dtype=torch.float64)
        expected = bound.forward(params, x)
        assert expected.shape == (2, 5, n_out)
        torch.testing.assert_close(bound.forward(params, x[1]), expected[1])
        with torch.inference_mode():
            torch.testing.assert_close(bound.forward(bound.aligned(params), x), expected)


@pytest.mark.parametrize(("network", "sizes"), [(Conv(channels=(4, 6)), (64, 4)), (ConvTranspose((7, 5)), (3, 70))])
def test_start_of_networks_for_images_is_a_function_of_the_seed_that_keeps_the_scale(network, sizes):
    bound = network.bind(*sizes, 0)
    first, again, other = (bound.init(*sizes, seed) for seed in (0, 0, 1))
    assert {k: tuple(v.shape) for k, v in first.items()} == bound.shapes(*sizes, 0)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not all(torch.equal(first[k], other[k]) for k in first)
    out = bound.forward(first, torch.randn(200, sizes[0], dtype=torch.float64))
    assert 0.02 < out.std() < 0.4  # a tenth of about one


def test_products_of_convolutions_are_counted_once_for_every_pixel():
    bound = Conv((8, 6), channels=(4,), kernel_size=3).bind(48, 5, 0)
    assert bound.n_products(48, 5, 0) == 12 * 4 * 9 + 48 * 5
    bound = ConvTranspose((8, 6), channels=(4,), kernel_size=3).bind(2, 48, 0)
    assert bound.n_products(2, 48, 0) == 2 * 48 + 12 * 4 * 9


def test_a_picture_of_the_same_stroke_elsewhere_has_the_same_features_elsewhere():
    bound = Conv((16, 16), channels=(3,)).bind(256, 2, 0)
    weight = torch.eye(3 * 64, dtype=torch.float64)
    params = {**random_params(bound, 256, 2), "weight1": weight, "bias1": torch.zeros((1, 192), dtype=torch.float64)}
    image = torch.zeros(16, 16, dtype=torch.float64)
    image[3:6, 2:5] = torch.randn(3, 3, dtype=torch.float64)
    one, other = (
        bound.forward(params, x.reshape(1, -1)).view(8, 8, 3).movedim(-1, 0) for x in (image, image.roll((4, 6), (0, 1)))
    )
    torch.testing.assert_close(one.roll((2, 3), (1, 2))[:, 2:, 3:], other[:, 2:, 3:])
    assert not torch.allclose(one, other)


@pytest.mark.parametrize("noise", ["feature", "network"])
def test_networks_for_images_are_found_by_name(noise):
    X = np.random.default_rng(0).normal(size=(60, 16))
    params = {"likelihood": Gaussian(noise), "max_iter": 2, "learning_rate": "cosine", "random_state": 0}
    by_name = VAETransformer(2, encoder="conv", decoder="conv", **params)
    by_name.set_params(encoder__channels=(4,), decoder__channels=(4,)).fit(X)
    explicit = VAETransformer(2, encoder=Conv((4, 4), channels=(4,)), decoder=ConvTranspose((4, 4), channels=(4,)), **params)
    np.testing.assert_array_equal(by_name.transform(X), explicit.fit(X).transform(X))
    assert by_name.transform(X).shape == (60, 2)
    assert by_name.inverse_transform([[0.0, 1.0]]).shape == (1, 16)


@pytest.mark.parametrize(
    ("params", "match"),
    [
        ({"encoder": "conv"}, r"Conv cannot arrange 12 columns as a square"),
        ({"decoder": "conv"}, r"ConvTranspose cannot arrange 12 columns as a square"),
        ({"encoder": Conv((3, 5))}, r"Conv cannot arrange 12 columns as an image of shape \(3, 5\)"),
        ({"decoder": ConvTranspose((5, 5))}, r"ConvTranspose cannot arrange 12 columns as an image of shape \(5, 5\)"),
        ({"encoder": Conv((12,))}, r"input_shape of Conv must be \(height, width\)"),
        ({"encoder": Conv((0, 4))}, r"input_shape of Conv must be"),
        ({"encoder": Conv(channels=())}, r"channels of Conv must be one or more"),
        ({"decoder": ConvTranspose(channels=(3, 0))}, r"channels of ConvTranspose must be one or more"),
        ({"encoder": Conv(kernel_size=4)}, r"kernel_size of Conv must be odd"),
    ],
)
def test_what_makes_no_image_is_refused(params, match):
    with pytest.raises(ValueError, match=match):
        VAETransformer(2, **params).fit(np.random.default_rng(0).normal(size=(20, 12)))


def test_missing_pixels_are_named_where_an_encoder_cannot_read_them():
    X = np.random.default_rng(0).normal(size=(20, 16))
    X[3, 5] = np.nan
    with pytest.raises(ValueError, match="Conv cannot arrange 17 columns.*Missing cells"):
        VAETransformer(2, encoder="conv").fit(X)


def test_pixels_are_not_left_out_in_silence():
    X = np.random.default_rng(0).random((30, 16))
    X[:, :7] = 0.5  # nine are left, which would make a square as well
    params = {"encoder": "conv", "decoder": "conv", "max_iter": 1, "learning_rate": "cosine", "random_state": 0}
    with pytest.raises(ValueError, match=r"7 column\(s\) never vary: .*Conv reads images and needs every pixel"):
        VAETransformer(2, **params).fit(X)
    for likelihood in (Gaussian(standardize=False), Bernoulli()):
        assert VAETransformer(2, likelihood=likelihood, **params).fit(X).reconstruct(X).shape == (30, 16)


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


class Given(Network):
    """Returns its input, or the same few outputs for every row, as they are or as a copy."""

    def __init__(self, what="input", *, copies=False):
        self.what = what
        self.copies = copies

    def shapes(self, n_in, n_out, seed):
        return {"outputs": (1, n_out)}

    def init(self, n_in, n_out, seed):
        return {"outputs": torch.full((1, n_out), 0.25)}

    def forward(self, params, x):
        outputs = params["outputs"].expand(*x.shape[:-1], -1) if self.what == "outputs" else x
        return outputs.clone() if self.copies else outputs


@pytest.mark.parametrize("likelihood", [Gaussian(), Bernoulli()])
@pytest.mark.parametrize("what", ["input", "outputs"])
@pytest.mark.parametrize("score_method", ["elbo", "iwae", "hmc"])
def test_scores_overwrite_nothing_that_a_network_was_given(likelihood, what, score_method):
    X = np.random.default_rng(0).uniform(size=(60, 3))

    def scores(copies):
        vae = VAETransformer(3, likelihood=likelihood, decoder=Given(what, copies=copies), max_iter=2, random_state=0)
        vae.set_params(learning_rate="cosine").fit(X)
        return vae.set_params(score_method=score_method).score_samples(X[:5])

    np.testing.assert_allclose(scores(copies=False), scores(copies=True), rtol=1e-4)


def test_networks_of_the_users_are_made_once():
    """Also for rows with holes, which training has not seen, and for cells that are judged one by one."""
    made = []

    def network(n_in, n_out):
        made.append((n_in, n_out))
        return torch.nn.Linear(n_in, n_out)

    X = np.random.default_rng(0).normal(size=(30, 4))
    vae = VAETransformer(2, encoder=network, decoder=network, max_iter=2, learning_rate="cosine").fit(X)
    made.clear()
    vae.transform(np.where(X > 1, np.nan, X))
    vae.score_cells(X)
    vae.predictive_interval(X)
    assert made == []
