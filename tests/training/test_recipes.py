"""The recipes' arithmetic, against PyTorch, torchvision and timm: schedules point by point, 50 steps of training.

A recipe here is what its config says of optimiser, schedule, loss and average, in a run of 10 epochs of 5 steps. Images
are not augmented: that is tested elsewhere, image by image.
"""

import functools
import importlib

import jax
import ml_collections
import numpy as np
import optax
import pytest

import resnet_jax
from batches import NUMBERS, make_batch
from resnet_jax.configs import default
from resnet_jax.step.step import create_train_state, normalize, train_step
from resnet_jax.training import recipe

torch = pytest.importorskip("torch")

EPOCHS, STEPS_PER_EPOCH = 10, 5
STEPS = EPOCHS * STEPS_PER_EPOCH
DECAY = 1 - (1 - 0.99998) * 1024 * 32 / EPOCHS  # torchvision's --model-ema-decay, of which it makes this

# torchvision/references/classification: README, and the post on its new recipe; Goyal et al. 2017, sections 2.2 and
# 5.1; Wightman et al. 2021 (arXiv:2110.00476), table 2, with timm's warm-up and final rate of that time.
RECIPES = {
    "torchvision_v1": {
        "optimizer.learning_rate": 0.1, "optimizer.nesterov": False, "optimizer.weight_decay": 1e-4,
        "schedule.name": "step", "schedule.per_epoch": True, "schedule.warmup_epochs": 0.0,
        "schedule.boundaries": (3.0, 6.0, 9.0),
    },
    "torchvision_v2": {
        "optimizer.learning_rate": 0.5, "optimizer.nesterov": False, "optimizer.weight_decay": 2e-5,
        "optimizer.decayed": "not_norm", "optimizer.label_smoothing": 0.1,
        "schedule.per_epoch": True, "schedule.warmup_epochs": 2.0, "schedule.warmup_start": 0.01,
        "ema.decay": DECAY, "ema.every_steps": 2, "ema.copy_epochs": 2.0,
    },
    "goyal": {
        "optimizer.learning_rate": 0.4, "optimizer.momentum": 0.9, "optimizer.nesterov": True,
        "optimizer.weight_decay": 1e-4, "optimizer.decayed": "not_norm",
        "schedule.name": "step", "schedule.warmup_epochs": 2.0, "schedule.warmup_start": 256 / 1024,
        "schedule.boundaries": (4.0, 6.0, 8.0),
    },
    "a3": {
        "optimizer.name": "lamb", "optimizer.learning_rate": 8e-3, "optimizer.weight_decay": 0.02,
        "optimizer.decayed": "kernels", "optimizer.eps": 1e-6, "optimizer.clip_norm": 1.0,
        "schedule.per_epoch": True, "schedule.warmup_epochs": 2.0, "schedule.warmup_start": 1e-4 / 8e-3,
        "schedule.under_warmup": True, "schedule.final_rate": 1e-6,
        "loss.name": "bce", "loss.target_threshold": 0.2,
    },
}  # fmt: skip


def recipe_config(name):
    config = default.get_config()
    config.num_epochs = float(EPOCHS)
    config.model.num_classes = 10
    config.update_from_flattened_dict(RECIPES[name])
    recipe.check(config, rows=8)
    return config


FILES = {"torchvision_v2": "torchvision_v2", "a3": "a3", "goyal": ""}


@pytest.mark.parametrize("name", FILES)
def test_the_config_file_is_the_recipe_that_is_proven_here(name):
    """But for what counts epochs: the runs here are shorter."""
    file = importlib.import_module("_".join(["resnet_jax.configs.imagenet_resnet50", *filter(None, [FILES[name]])]))
    config = ml_collections.ConfigDict(file.get_config().copy_and_resolve_references())
    flat = {key: value for key, value in RECIPES[name].items() if key.rpartition(".")[2] not in EPOCHS_OR_STEPS}
    found = {key: functools.reduce(lambda node, part: node[part], key.split("."), config) for key in flat}
    assert found == pytest.approx(flat)


def test_the_start_of_goyals_resnet50_is_that_of_section_5_1():
    """Of fc, a zero-mean Gaussian of 0.01, the last scale of each block 0, all others 1."""
    kwargs = importlib.import_module("configs.imagenet_resnet50").get_config().model.kwargs
    fields = {field: value for field, value in kwargs.items() if value is not None}
    model = resnet_jax.create_model("resnet50", stage_sizes=(1, 1), stage_features=(8, 8), stem_features=8, **fields)
    images = np.zeros((1, 32, 32, 3), np.float32)
    start = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), images)["params"]
    kernel = np.asarray(start["fc"]["kernel"])
    assert kernel.shape == (32, 1000)
    assert kernel.std() == pytest.approx(0.01, rel=0.02)
    assert abs(kernel.mean()) < 5 * 0.01 / kernel.size**0.5
    assert not start["fc"]["bias"].any()
    for stage in ("layer1", "layer2"):
        assert [float(start[stage]["0"][norm]["scale"].mean()) for norm in ("bn1", "bn2", "bn3")] == [1, 1, 0]


@pytest.mark.parametrize("name", ["torchvision_v2", "a1", "a2", "a3", "fast"])
def test_recipes_that_are_not_goyals_start_fc_as_pytorch(name):
    assert importlib.import_module(f"configs.imagenet_resnet50_{name}").get_config().model.kwargs.fc_init_std is None


EPOCHS_OR_STEPS = ("warmup_epochs", "boundaries", "decay", "every_steps", "copy_epochs")

# The same recipes, of the parts of PyTorch, torchvision and timm that the original scripts put together -----------


def split_norms(net):
    """Norms without decay, as torchvision's own function parts them."""
    from torchvision.ops._utils import split_normalization_params

    norms, others = split_normalization_params(net)
    return [{"params": norms, "weight_decay": 0.0}, {"params": others}]


def warmed_up(optimizer, main, *, start, length):
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=start, total_iters=length)
    return torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, main], milestones=[length])


def torchvision_v1(net):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.1), STEPS_PER_EPOCH


def torchvision_v2(net):
    optimizer = torch.optim.SGD(split_norms(net), lr=0.5, momentum=0.9, weight_decay=2e-5)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=EPOCHS - 2, eta_min=0.0)
    return optimizer, warmed_up(optimizer, cosine, start=0.01, length=2), STEPS_PER_EPOCH


def goyal(net):
    optimizer = torch.optim.SGD(split_norms(net), lr=0.4, momentum=0.9, weight_decay=1e-4, nesterov=True)
    warmup = 2 * STEPS_PER_EPOCH
    milestones = [epoch * STEPS_PER_EPOCH - warmup for epoch in (4, 6, 8)]  # it counts from the end of the warm-up
    steps = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
    return optimizer, warmed_up(optimizer, steps, start=256 / 1024, length=warmup), 1


def a3(net):
    pytest.importorskip("timm")
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2

    optimizer = create_optimizer_v2(net, opt="lamb", lr=8e-3, weight_decay=0.02)
    scheduler, epochs = create_scheduler_v2(
        optimizer, "cosine", num_epochs=EPOCHS, warmup_epochs=2, warmup_lr=1e-4, min_lr=1e-6
    )
    assert epochs == EPOCHS
    return optimizer, CountsItself(scheduler), STEPS_PER_EPOCH


class CountsItself:
    """timm's schedulers are told the epoch; this one counts, as PyTorch's do."""

    def __init__(self, scheduler):
        self.scheduler, self.epoch = scheduler, 0

    def step(self):
        self.epoch += 1
        self.scheduler.step(self.epoch)


REFERENCES = {f.__name__: f for f in (torchvision_v1, torchvision_v2, goyal, a3)}


def torch_criterion(name):
    if name == "a3":
        from timm.loss import BinaryCrossEntropy

        return BinaryCrossEntropy(smoothing=0.0, target_threshold=0.2)
    return torch.nn.CrossEntropyLoss(label_smoothing=0.1 if name == "torchvision_v2" else 0.0)


def torch_average(net):
    """The ExponentialMovingAverage of torchvision, which is in its scripts and not in the package."""
    average = torch.optim.swa_utils.AveragedModel(
        net, avg_fn=lambda old, new, _: DECAY * old + (1 - DECAY) * new, use_buffers=True
    )

    def update(epoch, i):
        if i % 2 == 0:
            average.update_parameters(net)
            if epoch < 2:
                average.n_averaged.fill_(0)

    return average, update


# Schedules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_schedules_equal_pytorchs_and_timms_at_every_step(name, x64):
    optimizer, scheduler, interval = REFERENCES[name](torch.nn.Linear(2, 2))
    theirs = []
    for step in range(STEPS):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()  # else PyTorch warns
        if (step + 1) % interval == 0:
            scheduler.step()
    schedule = recipe.create_schedule(recipe_config(name), steps_per_epoch=STEPS_PER_EPOCH, num_steps=STEPS)
    ours = [float(schedule(np.int32(step))) for step in range(STEPS)]
    print(f"\n{name}: step, ours, theirs")
    for step in np.linspace(0, STEPS - 1, 10).round().astype(int):
        print(f"{step:4d}  {ours[step]:.12f}  {theirs[step]:.12f}")
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


# Training --------------------------------------------------------------------------------------------------------


def worst(ours, theirs):
    """Largest difference of any tensor, relative to that tensor's largest value, however small that is."""
    assert set(theirs) <= set(ours)
    return max(float(np.abs(ours[key] - value.numpy()).max() / value.abs().max()) for key, value in theirs.items())


def tensors(net):
    return {key: value.detach() for key, value in net.state_dict().items() if "num_batches" not in key}


STATE_NAMES = {"trace": "momentum_buffer", "mu": "exp_avg", "nu": "exp_avg_sq"}  # optax's -> PyTorch's


def optimizer_states(model, state, optimizer, net):
    """(name, ours, theirs) of each tensor that the optimiser remembers of a parameter."""
    names = {parameter: key for key, parameter in net.named_parameters()}
    for ours, theirs in STATE_NAMES.items():
        trees = [value for _, value in optax.tree.get_all_with_path(state.opt_state, ours)]
        if trees:
            expected = {names[p]: entry[theirs] for p, entry in optimizer.state.items()}
            yield ours, resnet_jax.to_torch(model, state.variables | {"params": trees[0]}), expected


@pytest.fixture
def one_thread():
    """PyTorch on one thread: with more, such small layers wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small_net():
    """The stem and the first block of PyTorch's CIFAR ResNet-20."""
    verify = pytest.importorskip("resnet_jax.proof.verify")
    net = verify.torch_reference("cifar_resnet20").train()
    net.layer1, net.layer2, net.layer3 = net.layer1[:1], torch.nn.Identity(), torch.nn.Identity()
    net.fc = torch.nn.Linear(16, 10)
    net.double()
    verify.randomise_norms(net, seed=0)
    return net


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [name if name in ("torchvision_v2", "a3") else pytest.param(name, marks=pytest.mark.soak) for name in RECIPES],
)
def test_fifty_steps_of_a_recipe_equal_the_original(name, x64, one_thread, optimised):
    net = small_net()
    model = resnet_jax.create_model(
        "cifar_resnet20", stage_sizes=(1,), stage_features=(16,), norm="batch_unbiased", param_dtype="float64"
    )
    config = recipe_config(name)
    schedule = recipe.create_schedule(config, steps_per_epoch=STEPS_PER_EPOCH, num_steps=STEPS)
    tx = recipe.create_optimizer(config, schedule)
    variables = resnet_jax.from_torch(model, net.state_dict())
    state = create_train_state(model, variables, tx, ema=bool(config.ema.decay))
    options = recipe.step_options(config, steps_per_epoch=STEPS_PER_EPOCH)
    step = jax.jit(functools.partial(train_step, **options, **NUMBERS))

    optimizer, scheduler, interval = REFERENCES[name](net)
    criterion, (average, update) = torch_criterion(name), torch_average(net)
    differences: dict[str, float] = {}
    start = {key: value.clone() for key, value in tensors(net).items()}
    for number in range(STEPS):
        batch = make_batch(8, pixels=16, classes=10, seed=number)
        state, sums = step(state, batch)

        images = np.array(normalize(batch["image"], NUMBERS["mean"], NUMBERS["std"], np.float64))
        loss = criterion(
            net(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())), torch.from_numpy(batch["label"]).long()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        update(*divmod(number, STEPS_PER_EPOCH))
        if (number + 1) % interval == 0:
            scheduler.step()

        found = {
            "loss": abs(float(sums["loss"]) / 8 - loss.item()),
            "variables": worst(resnet_jax.to_torch(model, state.variables), tensors(net)),
        }
        if config.ema.decay:
            found["average"] = worst(resnet_jax.to_torch(model, state.ema), tensors(average.module))
        found |= {key: worst(*pair) for key, *pair in optimizer_states(model, state, optimizer, net)}
        differences = {key: max(value, differences.get(key, 0)) for key, value in found.items()}
    print(f"\n{name}: {differences}")
    assert all(value < 1e-8 for value in differences.values()), differences
    assert {"trace"} < differences.keys() or {"mu", "nu"} < differences.keys()
    learnt = resnet_jax.to_torch(model, state.variables)
    assert all(np.abs(learnt[key] - start[key].numpy()).max() > 1e-3 for key in dict(net.named_parameters()))
