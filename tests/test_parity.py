"""The proof: every stage of every network equals PyTorch's, in float64 to 1e-10 and in float32 to 1e-5.

Sizes are 224x224 and 193x225: an even one, where 'SAME' padding would be off by a pixel, and an odd one.
"""

import functools

import jax
import numpy as np
import pytest

import resnet_jax
from resnet_jax.weights import verify

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")

TORCHVISION = [name for name in resnet_jax.list_models() if not name.startswith("cifar")]
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in TORCHVISION if name != "resnet18"]


@pytest.mark.parametrize("name", ["resnet18", *SLOW])
def test_torchvisions_ten_equal_at_every_stage(name):
    report = verify.verify(name)
    print(report.table())
    assert len(report.rows) == 2 * 2 * 7  # dtypes, sizes, stages
    # Signals that explode would drown a forgotten bias; ones that vanish would hide a whole branch.
    assert all(1e-3 < row.reference < 1e3 for row in report.rows)
    assert report.passed, report.table()
    assert report.worst("float64").relative < 1e-10


@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_resnet56"])
def test_cifar_networks_equal_at_every_stage(name):
    report = verify.verify(name, sizes=((32, 32), (33, 29)))
    assert report.passed, report.table()
    assert all(1e-3 < row.reference < 1e3 for row in report.rows)


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


@pytest.mark.parametrize("name", TORCHVISION)
def test_parameter_counts_equal_torchvisions(name):
    with torch.device("meta"):
        reference = getattr(torchvision.models, name)()
    shapes = jax.eval_shape(
        lambda: resnet_jax.create_model(name).init(jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32), train=False)
    )
    ours = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert ours == sum(parameter.numel() for parameter in reference.parameters())


@functools.cache
def resnet18_and_reference():
    reference = verify.torch_reference("resnet18")
    verify.randomise_norms(reference)
    images = np.random.default_rng(0).standard_normal((2, 65, 97, 3))
    return reference.state_dict(), images, verify.torch_stage_outputs(reference.double(), images)


@pytest.mark.parametrize(
    "damage",
    [
        ("fc.bias", lambda x: x + 1e-3),
        ("layer4.1.bn2.running_mean", lambda x: x + 1e-2),
        ("layer4.1.bn2.running_var", lambda x: x * 1.01),
        ("layer1.0.bn1.bias", lambda x: x * 1.1),
        ("layer3.0.downsample.1.weight", lambda x: x[::-1]),
        ("layer2.0.conv2.weight", lambda x: x.transpose(0, 1, 3, 2)),
        ("conv1.weight", lambda x: x[:, ::-1]),
    ],
    ids=lambda damage: damage[0],
)
def test_each_kind_of_damage_is_seen(damage):
    """The proof can fail: one tensor of each kind, damaged, moves the logits by far more than the bar."""
    state_dict, images, theirs = resnet18_and_reference()
    name, change = damage
    damaged = {key: tensor.numpy() for key, tensor in state_dict.items()}
    damaged[name] = change(damaged[name])
    with jax.enable_x64(True):
        model = resnet_jax.resnet18(param_dtype="float64")
        variables = resnet_jax.from_torch(model, damaged, dtype=np.float64)
        rows = verify.compare(verify.stage_outputs(model, variables, images), theirs, dtype="float64", size="65x97")
    logits = rows[-1]
    assert logits.stage == "logits"
    assert logits.relative > 1e-6
    assert not logits.passed


def test_bfloat16_is_as_accurate_as_pytorchs():
    """Not the same bits, but no worse: the error of both against float64 on the same inputs."""
    state_dict, images, theirs = resnet18_and_reference()
    model = resnet_jax.resnet18(dtype="bfloat16", train=False)
    ours = jax.jit(model.apply)(resnet_jax.from_torch(model, state_dict, dtype=np.float32), images.astype(np.float32))
    reference = verify.torch_reference("resnet18")
    reference.load_state_dict(state_dict)
    channels_first = torch.from_numpy(images.astype(np.float32).transpose(0, 3, 1, 2).copy())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        autocast = reference(channels_first).float().numpy()

    def error(logits):
        return np.sqrt(np.mean((np.asarray(logits, np.float64) - theirs["logits"]) ** 2))

    assert ours.dtype == jax.numpy.bfloat16
    assert error(ours) < 1.5 * error(autocast)
