"""fused_linear equals plain_linear in float64, whatever the tiles, and gives the same bits every time."""

from itertools import product

import pytest
import torch

from framework.kernels.linear import Surroundings, fused_linear, in_place_linear, plain_linear
from framework.kernels.tiles import Shape, Tiles, choose_tiles
from tests.thinning import mostly_nightly

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NORMS = (None, "rms", "layer")
ACTIVATIONS = (None, "silu_gate", "gelu")
VECTOR = Tiles(block_m=1, block_n=16, block_k=64, split_k=1, num_warps=4, num_stages=1)
MATRIX = Tiles(block_m=16, block_n=32, block_k=32, split_k=1, num_warps=4, num_stages=2)
SPLIT_VECTOR = Tiles(block_m=1, block_n=16, block_k=64, split_k=3, num_warps=4, num_stages=1)
SPLIT_MATRIX = Tiles(block_m=16, block_n=32, block_k=32, split_k=3, num_warps=4, num_stages=2)
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
# (weight rows, in_features, what is fused); GPT-2's vocabulary is odd
REAL = {
    "8B qkv": (6144, 4096, ("rms", False, None, False)),
    "8B o": (4096, 4096, (None, False, None, True)),
    "8B gate-up": (28672, 4096, ("rms", False, "silu_gate", False)),
    "8B down": (4096, 14336, (None, False, None, True)),
    "1B qkv": (3072, 2048, ("rms", False, None, False)),
    "1B head": (128256, 2048, ("rms", False, None, False)),
    "GPT-2 qkv": (2304, 768, ("layer", True, None, False)),
    "GPT-2 up": (3072, 768, ("layer", True, "gelu", False)),
    "GPT-2 down": (768, 3072, (None, True, None, True)),
    "GPT-2 head": (50257, 768, ("layer", False, None, False)),
}


def make_case(rows, weight_rows, in_features, fused, dtype=torch.float32, device=DEVICE):
    """(x, weight, bias, surroundings); x has a mean far from 0, and rows that are slices of wider ones."""
    norm, has_bias, activation, has_residual = fused
    generator = torch.Generator(device).manual_seed(rows * weight_rows + in_features)

    def normal(*shape, scale=1.0, mean=0.0):
        return (torch.randn(shape, generator=generator, device=device) * scale + mean).to(dtype)

    out_features = weight_rows // 2 if activation == "silu_gate" else weight_rows
    x = normal(rows, in_features + 16, mean=0.5)[:, :in_features]
    bias = normal(weight_rows) if has_bias else None
    around = Surroundings(
        norm_weight=normal(in_features, scale=0.2, mean=1.0) if norm else None,
        norm_bias=normal(in_features, scale=0.2) if norm == "layer" else None,
        residual=normal(rows, out_features) if has_residual else None,
        norm_eps=1e-5,
        activation=activation,
    )
    return x, normal(weight_rows, in_features, scale=in_features**-0.5), bias, around


def doubled(value):
    """Tensors in float64, others as they are."""
    return value.double() if torch.is_tensor(value) else value


def reference(x, weight, bias, around):
    return plain_linear(x.double(), weight.double(), doubled(bias), Surroundings(*map(doubled, around)))


def check(rows, weight_rows, in_features, fused, tiles, dtype=torch.float32):
    case = make_case(rows, weight_rows, in_features, fused, dtype)
    outputs = [fused_linear(*case, tiles=tiles) for _ in range(2)]
    expected = reference(*case)
    assert outputs[0].dtype == dtype
    assert outputs[0].shape == expected.shape
    assert torch.equal(*outputs)
    error = (outputs[0].double() - expected).norm() / expected.norm()
    assert error < TOLERANCE[dtype], (error, tiles)  # also fails on NaN


@pytest.fixture
def triton():
    return pytest.importorskip("triton")


def test_plain_linear_by_hand():
    x, weight = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    around = Surroundings(norm_weight=torch.tensor([1.0, 2.0]), residual=torch.tensor([[1.0, 1.0]]))
    normed = plain_linear(x, weight, around=around)
    rms = 12.5**0.5
    torch.testing.assert_close(normed, torch.tensor([[1 + 3 / rms, 1 + 8 / rms]]))
    layer = plain_linear(x, weight, around=Surroundings(torch.ones(2), torch.tensor([0.0, 1.0])))
    torch.testing.assert_close(layer, torch.tensor([[-1.0, 2.0]]))
    gated = plain_linear(x, weight, around=Surroundings(activation="silu_gate"))
    torch.testing.assert_close(gated, torch.tensor([[4 * 3 / (1 + torch.tensor(-3.0).exp())]]))


@pytest.mark.parametrize("function", [plain_linear, fused_linear])
def test_unknown_activation_is_an_error(function):
    with pytest.raises(ValueError, match="'relu'"):
        function(torch.zeros(1, 2), torch.zeros(2, 2), around=Surroundings(activation="relu"))


@pytest.mark.parametrize(
    ("norm", "activation", "tiles"),
    mostly_nightly(NORMS, ACTIVATIONS, [VECTOR, MATRIX, SPLIT_VECTOR, SPLIT_MATRIX]),
)
def test_every_combination(triton, norm, activation, tiles):
    for has_bias, has_residual in product([False, True], repeat=2):
        check(1, 2 * 19, 130, (norm, has_bias, activation, has_residual), tiles)


@pytest.mark.parametrize(
    ("rows", "tiles"),
    [*mostly_nightly([1, 3], [VECTOR, SPLIT_VECTOR]), *mostly_nightly([1, 3, 16, 33], [SPLIT_MATRIX, MATRIX])],
)
def test_rows_and_whole_tiles(triton, rows, tiles):
    check(rows, 32, 64, ("layer", True, "silu_gate", True), tiles)
    check(rows, 17, 72, ("rms", False, None, True), tiles)


@pytest.mark.parametrize("rows", [1, 3, 33])
def test_chosen_tiles(triton, rows):
    check(rows, 70, 250, ("rms", True, "silu_gate", True), None)
    check(rows, 16, 768, ("layer", True, "gelu", True), None)


@pytest.mark.parametrize("has_delta", [False, True])
@pytest.mark.parametrize(
    "fused", [(None, False, None, True), ("rms", False, "silu_gate", False), ("layer", True, "gelu", True)]
)
def test_products_are_added_in_place_where_nothing_is_between(fused, has_delta):
    x, weight, bias, around = make_case(3, 2 * 19, 40, fused)
    if has_delta:
        around = around._replace(delta=torch.randn(3, 2 * 19, device=DEVICE))
    expected = plain_linear(x, weight, bias, around)
    output = in_place_linear(x, weight, bias, around)
    torch.testing.assert_close(output, expected)
    assert (output is around.residual) == (fused[3] and not fused[1] and not has_delta)


@pytest.mark.parametrize(("activation", "tiles"), mostly_nightly(ACTIVATIONS, [None, VECTOR, SPLIT_MATRIX]))
def test_what_adapters_add_comes_before_the_activation(triton, activation, tiles):
    rows = 1 if tiles is VECTOR else 3
    x, weight, bias, around = make_case(rows, 2 * 19, 130, ("rms", True, activation, True))
    without = fused_linear(x, weight, bias, around, tiles=tiles)
    around = around._replace(delta=torch.randn(rows, 2 * 19, generator=torch.Generator().manual_seed(0)).to(x))
    output = fused_linear(x, weight, bias, around, tiles=tiles)
    torch.testing.assert_close(output.double(), reference(x, weight, bias, around), rtol=1e-5, atol=1e-4)
    assert (output - without).abs().max() > 0.1


def test_more_splits_than_tiles_of_input_features(triton):
    check(1, 9, 70, (None, False, None, False), SPLIT_VECTOR)
    check(2, 9, 40, (None, False, "gelu", False), SPLIT_MATRIX)


@pytest.mark.gpu
class TestOnGPU:
    @pytest.fixture(autouse=True)
    def poison(self):
        """Freed memory that the next torch.empty gets is full of NaN."""
        torch.full((2**28,), float("nan"), device="cuda")

    @pytest.mark.parametrize("name", REAL)
    @pytest.mark.parametrize("rows", [1, 5, 16, 64, 200])
    def test_real_shapes(self, triton, rows, name):
        check(rows, *REAL[name], None, torch.bfloat16)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
    @pytest.mark.parametrize("tiles", [None, SPLIT_VECTOR, SPLIT_MATRIX])
    @pytest.mark.parametrize("rows", [1, 5, 64])
    def test_other_dtypes(self, triton, rows, tiles, dtype):
        check(rows, 1024, 768, ("layer", True, "silu_gate", True), tiles, dtype)
        check(rows, 1000, 770, ("rms", True, "gelu", False), tiles, dtype)

    @pytest.mark.parametrize("rows", [1, 4, 32])
    def test_overlapping_launches_in_a_graph(self, triton, rows):
        """A chain in which every kernel reads what the one before wrote, with split sums and shared counters."""
        x, *others = make_case(rows, 2048, 2048, ("rms", False, None, True), torch.bfloat16)
        tiles = [choose_tiles(Shape(rows, 2048, 2048), 132), SPLIT_VECTOR if rows == 1 else SPLIT_MATRIX]

        def chain():
            y = x
            for step in range(20):
                y = fused_linear(y, *others, tiles=tiles[step % 2])
            return y

        y = x
        for _ in range(20):
            y = plain_linear(y, *others)
        eager = chain()
        assert (eager - y).float().norm() / y.float().norm() < 5e-2
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = chain()
        for _ in range(50):
            captured.fill_(float("nan"))
            graph.replay()
            assert torch.equal(captured, eager)
