"""Training, not only inference, equals PyTorch: gradients, then parameters and statistics after five SGD steps.

Batch 8 at 64 pixels (at 16 with one block a stage of a net for small images), so that every norm averages over at least
32 values, and small last scales: with fewer values or scales near one the trajectory is chaotic, and two right programs
part.
"""

import functools

import jax
import numpy as np
import optax
import pytest

import resnet_jax
from batches import NUMBERS, make_batch
from resnet_jax.step.optimizer import create_optimizer
from resnet_jax.step.step import create_train_state, cross_entropy, normalize, train_step

torch = pytest.importorskip("torch")
verify = pytest.importorskip("resnet_jax.proof.verify")

NAMES = [
    ("cifar_resnet20", 1),  # of one block a stage
    *(pytest.param(name, None, marks=pytest.mark.parity) for name in ("test_resnet", "resnet18", "resnet50")),
    pytest.param("cifar_resnet20", None, marks=pytest.mark.parity),
]


# One network of each of the groups G0 (plain) to G12 (both blocks in one): small ones where the group has them.
GROUPS = [
    "resnet26", "wide_resnet50_2", "resnext50_32x4d", "resnet50c", "resnet18d", "resnet10t", "resnet50_gn",
    "seresnet18", "ecaresnet26t", "resnetaa34d", "resnetblur18", "resnetrs50", "test_resnet",
]  # fmt: skip
# Of two stages of one block in `make test`, so that each kind of part is there.
CUT = ["resnet10t", "seresnet18", "ecaresnet26t", "resnetblur18"]


def start(name, library=None, blocks=None, stages=4):
    """The same random net twice, in float64, and a batch; whole, or of so many blocks a stage and its first stages."""
    reference = verify.torch_reference(name, library=library).double().train()
    layers = [layer for layer in ("layer1", "layer2", "layer3", "layer4") if hasattr(reference, layer)]
    for layer in layers if blocks else ():
        setattr(reference, layer, getattr(reference, layer)[:blocks])
    cut = {"stage_sizes": (blocks,) * min(stages, len(layers))} if blocks else {}
    if stages < len(layers):
        width = getattr(reference, layers[stages])[0].conv1.in_channels
        reference.fc = torch.nn.Linear(width, reference.fc.out_features, dtype=torch.float64)
        for layer in layers[stages:]:
            setattr(reference, layer, torch.nn.Identity())
        whole = resnet_jax.create_model(name)
        for field in ("block", "stage_features"):
            value = getattr(whole, field)
            cut[field] = value[:stages] if isinstance(value, tuple) else value
    verify.randomise_norms(reference, seed=0)
    # The batch-statistics run of the norms is what is compared; PyTorch's running values start from the random ones.
    norm = "group" if name.endswith("_gn") else "batch_unbiased"
    model = resnet_jax.create_model(name, norm=norm, param_dtype="float64", **cut)
    variables = resnet_jax.from_torch(model, reference.state_dict())
    batch = make_batch(8, pixels=16 if blocks and name.startswith("cifar") else 64, classes=10)
    images = np.array(normalize(batch["image"], NUMBERS["mean"], NUMBERS["std"], np.float64))
    return reference, model, variables, batch, torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def torch_loss(reference, images, batch):
    return torch.nn.functional.cross_entropy(reference(images), torch.from_numpy(batch["label"]).long())


def worst(ours, theirs):
    """Largest difference of any tensor, relative to that tensor's largest value or to 1 if that is smaller."""
    assert ours.keys() == theirs.keys()
    return max(
        np.abs(ours[key] - theirs[key].numpy()).max() / max(1.0, np.abs(theirs[key].numpy()).max())
        for key in ours
        if "num_batches" not in key
    )


@pytest.mark.parametrize(("name", "blocks"), NAMES)
def test_gradients_and_five_steps_equal_pytorch(name, blocks, x64):
    reference, model, variables, batch, images = start(name, blocks=blocks)
    decay = 1e-4
    tx = create_optimizer(0.1, momentum=0.9, nesterov=True, weight_decay=decay)
    state = create_train_state(model, variables, tx)
    step = jax.jit(functools.partial(train_step, **NUMBERS), donate_argnums=0)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=decay)
    before = {key: value.clone() for key, value in reference.state_dict().items()}
    for number in range(5):
        state, _ = step(state, batch)
        optimizer.zero_grad()
        torch_loss(reference, images, batch).backward()
        if number == 0:  # the momentum is the gradient and what weight decay adds
            momentum = optax.tree_utils.tree_get(state.opt_state, "trace")
            grads = jax.tree.map(lambda a, b: np.asarray(a) - decay * b, momentum, variables["params"])
            ours = resnet_jax.to_torch(model, {"params": grads, "batch_stats": variables["batch_stats"]})
            theirs = {key: parameter.grad for key, parameter in reference.named_parameters()}
            assert worst({key: ours[key] for key in theirs}, theirs) < 1e-8
        optimizer.step()
    after = resnet_jax.to_torch(model, state.variables)
    assert worst(after, reference.state_dict()) < 1e-8
    assert worst(after, before) > 1e-3  # something was learnt


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        *(pytest.param(name, 1, marks=pytest.mark.slow) for name in CUT),
        *(pytest.param(name, None, marks=pytest.mark.parity) for name in GROUPS),
    ],
)
def test_gradients_of_a_network_of_each_group_equal_pytorchs(name, blocks, x64):
    """In training mode, dropping nothing: every gradient, and the running statistics after the forward pass."""
    reference, model, variables, batch, images = start(name, "timm", blocks, stages=2 if blocks else 4)

    @jax.jit
    def gradients(variables):
        def loss(params):
            logits, updates = model.apply(
                variables | {"params": params}, images.numpy().transpose(0, 2, 3, 1), train=True, mutable="batch_stats"
            )
            return cross_entropy(logits, batch["label"]).mean(), updates

        return jax.grad(loss, has_aux=True)(variables["params"])

    grads, updates = gradients(variables)
    torch_loss(reference, images, batch).backward()
    ours = resnet_jax.to_torch(model, {"params": grads, **updates})
    theirs = {key: parameter.grad for key, parameter in reference.named_parameters()}
    running = {key: value for key, value in reference.named_buffers() if key in ours}
    assert worst({key: ours[key] for key in theirs}, theirs) < 1e-8
    assert bool(running) == (name != "resnet50_gn")
    assert not running or worst({key: ours[key] for key in running}, running) < 1e-8
    # By itself, too: each gradient against its own largest value, so that a small one proves as much.
    for key, gradient in theirs.items():
        largest = gradient.abs().max().item()
        assert largest > 1e-7, key
        assert np.abs(ours[key] - gradient.numpy()).max() < 1e-6 * largest, key


@pytest.mark.slow
def test_accumulated_gradients_equal_a_pytorch_loop_of_backwards(x64, optimised):
    """`backward` for each part, then one `step`; the running statistics move with each part. Three steps."""
    parts = 4
    reference, model, variables, batch, images = start("cifar_resnet20", blocks=1)
    tx = create_optimizer(0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
    state = create_train_state(model, variables, tx)
    step = jax.jit(functools.partial(train_step, accumulate=parts, **NUMBERS))
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
    for _ in range(3):
        state, sums = step(state, batch)
        optimizer.zero_grad()
        for part in range(parts):
            rows = slice(part, None, parts)
            loss = torch_loss(reference, images[rows], {"label": batch["label"][rows]})
            (loss / parts).backward()
        optimizer.step()
    assert worst(resnet_jax.to_torch(model, state.variables), reference.state_dict()) < 1e-8
    assert float(sums["count"]) == 8


def test_biased_running_variance_would_be_seen(x64):
    """The comparison above can fail: Flax's own running variance is off by n / (n - 1)."""
    reference, unbiased, variables, batch, images = start("cifar_resnet20", blocks=1)
    model = unbiased.clone(norm="batch")
    new, _ = jax.jit(functools.partial(train_step, **NUMBERS))(
        create_train_state(model, variables, optax.identity()), batch
    )
    reference(images)
    running = {key: value for key, value in reference.state_dict().items() if key.endswith("running_var")}
    ours = resnet_jax.to_torch(model, {"params": variables["params"], "batch_stats": new.batch_stats})
    assert worst({key: ours[key] for key in running}, running) > 1e-6
