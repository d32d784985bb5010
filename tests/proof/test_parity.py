"""The proof: every stage of every network equals PyTorch's, in float64 to 1e-10.

`make parity` runs all of it and prints the table, `make test` a share of it: one network of each group, cut to a few
blocks, and a few whole ones. Images are 65x97, where every rounding shows, and for one network of each group they have
the size of its weights too. All of it is compiled as users have it.
"""

import functools
import math

import jax
import numpy as np
import pytest

import resnet_jax
from resnet_jax.proof import verify
from resnet_jax.weights import convert
from resnet_jax.weights.names import COUNTER

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")
timm = pytest.importorskip("timm")
from hollow import hollow  # noqa: E402 - it imports PyTorch

# Every entry point, as LIBRARY/NAME: timm's 81, torchvision's ten, and what only the paper has.
TIMM = [f"timm/{name}" for name in timm.list_models(module="resnet")]
TORCHVISION = [
    f"torchvision/{name}"
    for name in torchvision.models.list_models(module=torchvision.models)
    if name.split("_")[0].rstrip("0123456789") in ("resnet", "resnext") or name.startswith("wide_resnet")
]
PAPER = [f"paper/{name}" for name in resnet_jax.list_models() if "plain" in name or "cifar" in name]
# One network of each of the groups G0 (plain) to G12 (both blocks in one): what the knobs are, all of them occur.
GROUPS = {
    "G0": "timm/resnet50",
    "G1": "timm/wide_resnet50_2",
    "G2": "timm/resnext50_32x4d",
    "G3": "timm/resnet50c",
    "G4": "timm/resnet34d",
    "G5": "timm/resnet26t",
    "G6": "timm/resnet50_gn",
    "G7": "timm/seresnet50",
    "G8": "timm/ecaresnet50d_pruned",
    "G9": "timm/resnetaa50",
    "G10": "timm/resnetblur18",
    "G11": "timm/resnetrs50",
    "G12": "timm/test_resnet",
}
SMALL = (65, 97)
STATISTICS = ("running_mean", "running_var")
NARROW = (16, 32, 64, 128)
FEW = (2, 1, 1, 1)  # the second block of a stage has no convolution in its shortcut

pytestmark = pytest.mark.usefixtures("optimised")


def proof(entries, share=()):
    """Parameters of a test that belongs to the proof; those in `share` run in `make test` too."""
    shared = [pytest.mark.parity, pytest.mark.share, pytest.mark.slow]
    return [pytest.param(entry, marks=shared if entry in share else pytest.mark.parity) for entry in entries]


@functools.cache
def reference_of(entry, sizes=None):
    """PyTorch's network with random norm tensors, in float64; each library's own, also where both have the name."""
    library, name = entry.split("/")
    layers = {"layers": sizes} if sizes else {}
    reference = verify.torch_reference(name, library=None if library == "paper" else library, **layers)
    assert library == "paper" or type(reference).__module__.startswith(library)
    verify.randomise_norms(reference)
    return reference.double()


def cut(name, sizes):
    """The fields of our network with so many blocks in its stages."""
    widths = resnet_jax.create_model(name).block_widths
    pruned = {"block_widths": [stage[:size] for stage, size in zip(widths, sizes, strict=True)]} if widths else {}
    return {"stage_sizes": sizes} | pruned


def total(model):
    """The parameters of a network, every block counted."""
    images = np.zeros((1, 64, 64, 3), np.float32)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


def shapes_of(reference):
    """Names and shapes of a module's tensors, without the counters that Flax does not have."""
    return {key: tuple(x.shape) for key, x in reference.state_dict().items() if not key.endswith(COUNTER)}


def prove(entry, size, record_property, sizes=None):
    """Compares at one size in float64 and writes a line of the table; `sizes`: cut to so many blocks in the stages."""
    if not sizes:  # one network at a time: the largest has 0.5 G parameters
        reference_of.cache_clear()
        jax.clear_caches()
    reference, name = reference_of(entry, sizes), entry.split("/")[1]
    fields = cut(name, sizes) if sizes else {}
    gates = gate_values(reference)
    with jax.enable_x64(True):
        model = resnet_jax.create_model(name, param_dtype="float64", precision="highest", **fields)
        variables = resnet_jax.from_torch(model, reference.state_dict(), dtype=np.float64)
        images = np.random.default_rng(0).standard_normal((2, *size, 3))
        ours = verify.stage_outputs(model, variables, images)
    theirs = verify.torch_stage_outputs(reference, images)
    rows = verify.compare(ours, theirs, dtype="float64", size=f"{size[0]}x{size[1]}")
    worst = max(rows, key=lambda row: row.difference)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    label = f"{entry} {sum(sizes)} blocks" if sizes else entry
    record_property("parity", f"{label:<33}{count:>12,}  {worst.size:<9}{worst.stage:<12}{worst.difference:>11.1e}")
    assert len(rows) == len([stage for stage in dir(reference) if stage.startswith("layer")]) + 3
    # Signals that explode would drown a forgotten bias; ones that vanish would hide a whole branch.
    assert all(1e-3 < row.reference < 1e3 for row in rows), rows
    assert bool(gates) == (name.startswith(("se", "eca", "resnetrs")))
    assert all(0.02 < gate < 0.98 for gate in gates)
    assert worst.difference < 1e-10, rows
    assert count == sum(parameter.numel() for parameter in reference.parameters())
    assert convert.torch_shapes(model) == shapes_of(reference)
    assert sizes or count == total(resnet_jax.create_model(name))


def gate_values(reference):
    """Extremes of each attention gate on random images: a gate that is stuck at 0 or 1 would hide its weights."""
    found, hooks = [], []

    def keep(module, inputs, output):
        found.extend([output.min().item(), output.max().item()])

    for module in reference.modules():
        if hasattr(module, "gate"):
            hooks.append(module.gate.register_forward_hook(keep))
    with torch.no_grad():
        reference(torch.randn(1, 3, 64, 64, dtype=torch.float64))
    for hook in hooks:
        hook.remove()
    return found


def test_there_are_81_and_10():
    assert len(TIMM) == 81
    assert len(TORCHVISION) == 10
    compared = {entry.split("/")[1] for entry in [*TIMM, *TORCHVISION, *PAPER]}
    # timm has weights of this one, but no entry point.
    assert set(resnet_jax.list_models()) - compared == {"resnext101_32x48d"}
    assert compared < set(resnet_jax.list_models())


def test_the_one_that_timm_has_no_entry_point_for_is_its_resnet_with_those_arguments():
    from timm.models.resnet import Bottleneck, ResNet

    with hollow():
        reference = ResNet(Bottleneck, (3, 4, 23, 3), cardinality=32, base_width=48)
    assert convert.torch_shapes(resnet_jax.create_model("resnext101_32x48d")) == shapes_of(reference)


# G1 is wider alone, and shapes are compared for all; G4 has a deep stem as G3 does; a record is of a tiered one, as G5.
OTHERS = {"timm/wide_resnet50_2", "timm/resnet50c", "timm/resnet26t"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(entry, marks=pytest.mark.parity if entry in OTHERS else ())
        for entry in GROUPS.values()
        if entry != "timm/test_resnet"
    ],
)
def test_a_network_of_each_group_cut_to_few_blocks_equals_pytorch(entry, record_property):
    prove(entry, SMALL, record_property, FEW)


@pytest.mark.parametrize(
    "entry",
    proof(
        [*TIMM, *TORCHVISION, *PAPER],
        share=["timm/test_resnet", "paper/cifar_resnet20", "paper/plain18"],
    ),
)
def test_every_network_equals_pytorch(entry, record_property):
    prove(entry, (33, 29) if "cifar" in entry else SMALL, record_property)


@pytest.mark.parametrize("entry", proof(GROUPS.values(), share=["timm/test_resnet"]))
def test_a_network_of_each_group_equals_pytorch_at_its_real_size(entry, record_property):
    size = timm.get_pretrained_cfg(entry.removeprefix("timm/")).input_size[1:]
    prove(entry, size, record_property)


@pytest.mark.parametrize("entry", proof(TORCHVISION, share=["torchvision/resnet18"]))
def test_torchvisions_ten_equal_at_real_sizes_in_float32_too(entry):
    """224x224 and 193x225: an even size, where 'SAME' padding would be off by a pixel, and an odd one."""
    report = verify.verify(entry.removeprefix("torchvision/"))
    assert len(report.rows) == 2 * 2 * 7  # dtypes, sizes, stages
    assert report.passed, report.table()


def there_and_back(entry, sizes=None):
    library, name = entry.split("/")
    layers = {"layers": sizes} if sizes else {}
    reference = verify.torch_reference(name, library=library, **layers)
    verify.randomise_norms(reference)
    given = reference.state_dict()
    for key, counter in given.items():
        if key.endswith("num_batches_tracked"):
            assert not counter  # as in a new module; Flax has no such counter, and `to_torch` writes 0
    model = resnet_jax.create_model(name, **(cut(name, sizes) if sizes else {}))
    returned = resnet_jax.to_torch(model, resnet_jax.from_torch(model, given))
    assert list(returned) == list(given)
    for key, tensor in given.items():
        np.testing.assert_array_equal(returned[key], tensor.numpy(), strict=True)
    # An empty module, so that what is missing cannot come from the one that gave the weights.
    with hollow():
        empty = verify.torch_reference(name, library=library, **layers)
    empty.load_state_dict({key: torch.from_numpy(value) for key, value in returned.items()}, strict=True, assign=True)


@pytest.mark.parametrize("entry", proof([*TIMM, *TORCHVISION], share=["torchvision/resnet18", "timm/test_resnet"]))
def test_there_and_back_is_bit_for_bit_and_loads_strictly(entry):
    there_and_back(entry)


@pytest.mark.parametrize("entry", ["timm/senet154", "timm/ecaresnet50d_pruned"])
def test_there_and_back_is_bit_for_bit_of_few_blocks_too(entry):
    there_and_back(entry, FEW)


@pytest.mark.parametrize("name", [entry.removeprefix("timm/") for entry in TIMM])
def test_parameter_counts_equal_to_the_unit(name):
    """Names and shapes too; the third block of a stage and later ones as its second. The whole proof counts all."""
    with hollow():
        reference = timm.create_model(name)
    # Without a zero, which is a matter of numbers, more networks are the same but for their depth.
    ours = convert.torch_shapes(resnet_jax.create_model(name, zero_init_residual=False))
    assert ours == shapes_of(reference)
    count = sum(math.prod(shape) for key, shape in ours.items() if not key.endswith(STATISTICS))
    assert count == sum(parameter.numel() for parameter in reference.parameters())


def test_projection_shortcuts_of_a_cifar_network_equal():
    """Option B in place of A, and names as CIFAR repositories give them."""
    reference = verify.torch_reference("cifar_resnet20")
    for layer, features in (("layer2", 16), ("layer3", 32)):
        projection = torch.nn.Conv2d(features, 2 * features, 1, 2, bias=False)
        getattr(reference, layer)[0].downsample = torch.nn.Sequential(projection, torch.nn.BatchNorm2d(2 * features))
    verify.randomise_norms(reference.eval(), seed=1)
    renamed = {
        "module." + name.replace("fc.", "linear.").replace("downsample", "shortcut"): tensor
        for name, tensor in reference.state_dict().items()
    }
    images = np.random.default_rng(0).standard_normal((2, 31, 32, 3))
    with jax.enable_x64(True):
        model = resnet_jax.cifar_resnet20(shortcut="B", param_dtype="float64")
        variables = resnet_jax.from_torch(model, renamed, dtype=np.float64)
        ours = verify.stage_outputs(model, variables, images)
    rows = verify.compare(ours, verify.torch_stage_outputs(reference.double(), images), dtype="float64", size="31x32")
    assert max(row.relative for row in rows) < 1e-10


DAMAGE = [
    ("resnet18", "fc.bias", lambda x: x + 1e-3),
    ("resnet18", "layer4.1.bn2.running_mean", lambda x: x + 1e-2),
    ("resnet18", "layer4.1.bn2.running_var", lambda x: x * 1.01),
    ("resnet18", "layer1.0.bn1.bias", lambda x: x * 1.1),
    ("resnet18", "layer3.0.downsample.1.weight", lambda x: x[::-1]),
    ("resnet18", "layer2.0.conv2.weight", lambda x: x.transpose(0, 1, 3, 2)),
    ("resnet18", "conv1.weight", lambda x: x[:, ::-1]),
    ("resnetrs50", "conv1.0.weight", lambda x: x[:, ::-1]),
    ("resnetrs50", "conv1.1.running_mean", lambda x: x + 1e-2),
    ("resnetrs50", "conv1.6.weight", lambda x: x.transpose(0, 1, 3, 2)),
    ("resnetrs50", "maxpool.0.weight", lambda x: x[:, ::-1]),
    ("resnetrs50", "maxpool.1.bias", lambda x: x * 1.1),
    ("resnetrs50", "layer2.0.downsample.2.running_var", lambda x: x * 1.01),
    ("resnetrs50", "layer1.0.se.fc1.weight", lambda x: x[:, ::-1]),
    ("resnetrs50", "layer1.1.se.fc1.bias", lambda x: x + 0.1),
    ("resnetrs50", "layer4.0.se.fc2.weight", lambda x: x[::-1]),
    ("resnetrs50", "layer1.0.se.fc2.bias", lambda x: x + 0.1),
    ("ecaresnet50d_pruned", "layer4.0.se.conv.weight", lambda x: x[..., ::-1]),
    ("ecaresnet50d_pruned", "layer1.0.se.conv.weight", lambda x: x[..., ::-1]),
]


@functools.cache
def damage_reference(network):
    """Weights, images and what PyTorch makes of them; torchvision's network whole, timm's cut to a few blocks."""
    reference = verify.torch_reference(network, **({} if network == "resnet18" else {"layers": FEW}))
    verify.randomise_norms(reference)
    images = np.random.default_rng(0).standard_normal((2, *SMALL, 3))
    return reference.state_dict(), images, verify.torch_stage_outputs(reference, images)


@pytest.mark.parametrize(
    ("network", "name", "change"), DAMAGE, ids=lambda value: value if isinstance(value, str) else ""
)
def test_each_kind_of_damage_is_seen(network, name, change):
    """The proof can fail: one tensor of each kind, damaged, moves the logits by far more than the bar."""
    state_dict, images, theirs = damage_reference(network)
    damaged = {key: tensor.numpy() for key, tensor in state_dict.items()}
    damaged[name] = change(damaged[name])
    fields = {} if network == "resnet18" else cut(network, FEW)
    with jax.enable_x64(True):
        model = resnet_jax.create_model(network, param_dtype="float64", precision="highest", **fields)  # as in `prove`
        variables = resnet_jax.from_torch(model, damaged, dtype=np.float64)
        rows = verify.compare(verify.stage_outputs(model, variables, images), theirs, dtype="float64", size="65x97")
    logits = rows[-1]
    assert logits.stage == "logits"
    assert logits.relative > 1e-7
    assert not logits.passed


def logits_of_pytorch(module, images, autocast=False):
    channels_first = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return module(channels_first).double().numpy()


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        pytest.param("seresnet50", FEW, marks=pytest.mark.slow),
        *(pytest.param(name, None, marks=pytest.mark.parity) for name in ("resnet50", "seresnet50", "resnet152")),
    ],
)
def test_bfloat16_is_as_accurate_as_pytorchs(name, sizes, capsys):
    """Not the same bits, but no worse: the error of both against float64, over 16 inputs for each of three seeds."""
    library, layers, fields = None, {}, {}
    if sizes:
        library, layers = "timm", {"layers": sizes, "channels": NARROW}
        fields = cut(name, sizes) | {"stage_features": NARROW}
    model = resnet_jax.create_model(name, dtype="bfloat16", train=False, **fields)
    apply, ours, theirs = jax.jit(model.apply), [], []
    for seed in range(3):
        reference = verify.torch_reference(name, library=library, seed=seed, **layers)
        verify.randomise_norms(reference, seed)
        images = np.random.default_rng(seed).standard_normal((16, 64, 64, 3)).astype(np.float32)
        variables = resnet_jax.from_torch(model, reference.state_dict())
        autocast = logits_of_pytorch(reference, images, autocast=True)
        exact = logits_of_pytorch(reference.double(), images.astype(np.float64))
        logits = apply(variables, images)
        assert logits.dtype == jax.numpy.bfloat16
        scale = np.sqrt(np.mean(exact**2))
        ours.append((np.asarray(logits, np.float64) - exact) / scale)
        theirs.append((autocast - exact) / scale)
    rms = [float(np.sqrt(np.mean(np.square(errors)))) for errors in (ours, theirs)]
    most = [float(np.abs(errors).max()) for errors in (ours, theirs)]
    with capsys.disabled():
        print(
            f"\n{name}: bfloat16 RMS error {rms[0]:.2e} (PyTorch {rms[1]:.2e}), largest {most[0]:.2e} ({most[1]:.2e})"
        )
    assert rms[0] <= 1.2 * rms[1]
