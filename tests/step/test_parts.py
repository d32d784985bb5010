"""Frozen parts, rates of parts, layer decay: as PyTorch's parameter groups and timm's; what is frozen costs nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

import resnet_jax
from batches import NUMBERS, make_batch
from resnet_jax.configs import default
from resnet_jax.plan import needs
from resnet_jax.runs import workdirs
from resnet_jax.step.parallel import AXIS, parallelize
from resnet_jax.step.parts import Parts, depths, merge, resolve, split
from resnet_jax.step.step import create_train_state, eval_step, train_step
from resnet_jax.training import checkpoint, config_file, experiment, loop, recipe
from tiny import TWO_STAGES, tiny_config

PROBE = (("", 0.0), ("fc", 1.0))
TRUNK = (("conv1", 0.0), ("bn1", 0.0), ("layer1", 0.0), ("layer2", 0.5), ("fc", 3.0))


@functools.cache
def shapes(name):
    model = resnet_jax.create_model(name)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))


def parts_of(name, rates=(), layer_decay=1.0, freeze_norm=None):
    return resolve(shapes(name), rates=rates, layer_decay=layer_decay, freeze_norm=freeze_norm)


def flat(tree):
    return {name: np.asarray(leaf) for name, leaf in flatten_dict(tree, sep=".").items()}


def moved(before, after):
    before, after = flat(before), flat(after)
    return {name for name in before if not np.array_equal(before[name], after[name])}


def inside(name, layers):
    """Whether `collection.layer.tensor` belongs to one of the layers."""
    return name.partition(".")[2].rpartition(".")[0] in layers


# Which layers, and how fast -----------------------------------------------------------------------------------


def test_the_longest_prefix_counts_and_ends_where_a_name_does():
    found = parts_of("resnet18", (("layer1", 0.5), ("layer1.1", 2.0), ("layer1.1.bn2", 3.0), ("", 0.25)))
    assert found.frozen == ()
    assert found.freeze_norm is None
    expected = {"conv1": 0.25, "layer1.0.conv1": 0.5, "layer1.1.conv1": 2.0, "layer1.1.bn2": 3.0, "layer2.1.bn1": 0.25}
    assert {layer: found.rates[layer] for layer in expected} == expected


def test_a_prefix_is_no_part_of_a_longer_number():
    blocks = {str(i): {"conv1": {"kernel": 0}} for i in (1, 10)}
    variables = {"params": {"layer1": blocks, "fc": {"kernel": 0}}}
    found = resolve(variables, rates=(("layer1.1", 0.5),), layer_decay=1.0, freeze_norm=None)
    assert found.rates == {"layer1.1.conv1": 0.5, "layer1.10.conv1": 1.0, "fc": 1.0}


def test_a_linear_probe_freezes_all_but_the_head_and_its_norms():
    found = parts_of("resnet18", PROBE)
    assert found.rates == {"fc": 1.0}
    assert len(found.frozen) == 20 + 20  # convolutions and norms of torchvision's resnet18
    assert found.freeze_norm == ("stem", "layer1", "layer2", "layer3", "layer4")


def test_blocks_are_counted_from_the_head_by_hand():
    layers = [
        "conv1",
        "bn1",
        "layer1.0.conv1",
        "layer1.0.bn1",
        "layer2.0.conv1",
        "layer2.10.conv1",
        "layer2.2.bn1",
        "fc",
    ]
    assert depths(layers) == dict(zip(layers, [5, 5, 4, 4, 3, 1, 2, 0], strict=True))


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet10t", "seresnet18", "resnetrs50"])
def test_layer_decay_gives_each_layer_the_scale_that_timm_gives_it(name):
    timm = pytest.importorskip("timm")
    from timm.optim import param_groups_layer_decay

    reference = timm.create_model(name)
    groups = param_groups_layer_decay(reference, layer_decay=0.75)
    scale_of = {id(tensor): group["lr_scale"] for group in groups for tensor in group["params"]}
    theirs = {tensor.rpartition(".")[0]: scale_of[id(value)] for tensor, value in reference.named_parameters()}
    ours = parts_of(name, layer_decay=0.75).rates
    assert ours == pytest.approx(theirs, rel=1e-12)
    blocks = sum(resnet_jax.create_model(name).stage_sizes)
    assert ours["conv1" if "conv1" in ours else "conv1.0"] == pytest.approx(0.75 ** (blocks + 1))


def test_layer_decay_multiplies_the_rates_of_parts():
    plain, both = (parts_of("resnet18", rates, 0.5).rates for rates in ((), (("layer4", 3.0),)))
    assert both["layer4.1.conv1"] == 3 * plain["layer4.1.conv1"] == 1.5
    assert both["fc"] == plain["fc"] == 1.0


def test_split_and_merge_are_inverse_and_leave_a_whole_tree_alone():
    tree = {"conv1": {"kernel": 1}, "layer1": {"0": {"bn1": {"scale": 2, "bias": 3}, "conv1": {"kernel": 4}}}}
    trained, still = split(tree, ("layer1.0.bn1",))
    assert still == {"layer1": {"0": {"bn1": {"scale": 2, "bias": 3}}}}
    assert merge(trained, still) == tree
    assert split(tree, ())[0] is tree is merge(tree, {})


def test_norms_that_freeze_norm_names_are_frozen_as_parameters_too():
    """Their scales get no gradient, and weight decay alone would move them."""
    found = parts_of("resnet18", freeze_norm=("layer2",))
    assert set(found.frozen) == {f"layer2.{name}" for name in ("0.bn1", "0.bn2", "0.downsample.1", "1.bn1", "1.bn2")}
    assert found.freeze_norm == ("layer2",)
    assert len(parts_of("resnet18", freeze_norm=True).frozen) == 20


def test_part_of_a_stage_can_be_frozen_where_its_norms_are_or_keep_no_statistics():
    assert "layer1.1.bn1" in parts_of("resnet18", (("layer1.0", 0),), freeze_norm=("layer1",)).frozen
    assert parts_of("resnet18", (("layer1.0.conv1", 0),)) == Parts(
        ("layer1.0.conv1",), dict.fromkeys(sorted(parts_of("resnet18").rates.keys() - {"layer1.0.conv1"}), 1.0), None
    )
    group_norm = parts_of("resnet50_gn", (("layer1.0", 0),))
    assert "layer1.0.bn1" in group_norm.frozen
    assert group_norm.freeze_norm is None


# Refused --------------------------------------------------------------------------------------------------------

REFUSED = [
    ({"optimizer.rates": (("layer3", 0.1),)},
     r"config.optimizer.rates: no layer is inside 'layer3'. The parts are bn1, conv1, fc, layer1, layer2, and what"),
    ({"optimizer.rates": (("fc.bias", 2.0),)}, r"config.optimizer.rates: no layer is inside 'fc.bias'"),
    ({"optimizer.rates": (("", 0.0),)}, r"config.optimizer.rates=\(\('', 0.0\),\) freezes everything"),
    ({"optimizer.rates": (("fc", -1.0),)}, r"config.optimizer.rates=.*'fc' has the factor -1.0: give 0 \(frozen\)"),
    ({"optimizer.rates": (("fc", float("nan")),)}, r"config.optimizer.rates=.*'fc' has the factor nan"),
    ({"optimizer.rates": (("fc", 0.0), ("fc", 2.0))}, r"config.optimizer.rates=.* gives 'fc' twice"),
    ({"optimizer.rates": ("fc", 2.0)}, r"config.optimizer.rates=\('fc', 2.0\) holds 'fc': give pairs"),
    ({"optimizer.rates": (("fc", "2"),)}, r"config.optimizer.rates=.* holds \('fc', '2'\): give pairs"),
    ({"optimizer.rates": (("layer1", 0.5), ("layer1.0", 1.0))}, r"'layer1' says nothing, as longer prefixes"),
    ({"optimizer.layer_decay": 0.0}, r"config.optimizer.layer_decay=0.0 must be a number in \(0, 1\]"),
    ({"optimizer.layer_decay": 1.5}, r"config.optimizer.layer_decay=1.5 must be a number in \(0, 1\]"),
    ({"optimizer.layer_decay": 0.5, "optimizer.rates": PROBE},
     r"config.optimizer.layer_decay=0.5 slows nothing down, as config.optimizer.rates="),
    ({"optimizer.rates": (("layer1.0.bn1", 0.0),)},
     r"config.optimizer.rates freezes layer1.0.bn1, but not layer1.0.bn2. .*model.kwargs.freeze_norm=\('layer1',"),
    ({"optimizer.rates": PROBE, "freeze_norm": ("stem",)},
     r"config.optimizer.rates=.* freezes the norms of stem, layer1, layer2, but config.model.kwargs.freeze_norm="),
    ({"optimizer.rates": PROBE, "freeze_norm": False}, r"but config.model.kwargs.freeze_norm=False"),
    ({"optimizer.rates": (("bn1", 2.0),), "freeze_norm": True},
     r"config.optimizer.rates gives 'bn1' the factor 2.0, but config.model.kwargs.freeze_norm=True freezes it"),
    ({"freeze_norm": ("layer7",)}, r"freeze_norm must be True, False or some of \['stem', 'layer1'"),
]  # fmt: skip


def configured(**changes):
    config = tiny_config(TWO_STAGES)
    if "freeze_norm" in changes:
        config.model.kwargs.freeze_norm = changes.pop("freeze_norm")
    config.update_from_flattened_dict(changes)
    return config


def designed(**changes):
    config = configured(**changes)
    return experiment.design(config, experiment.data_facts(config), jax.devices()[:1])


@pytest.mark.parametrize(("changes", "said"), REFUSED, ids=[f"{i} {' '.join(c)}" for i, (c, _) in enumerate(REFUSED)])
def test_parts_that_contradict_are_refused_before_anything_is_compiled(changes, said):
    with pytest.raises(ValueError, match=said):
        designed(**changes)


# In training ----------------------------------------------------------------------------------------------------


def step_of(**changes):
    """The cost of the step's program, and the state that it takes."""
    made = designed(parallel="jit", **changes)
    state = needs.abstract_state(made)
    return made.parallel.train_step.lower(state, needs.abstract_batch(made)).cost_analysis(), state


@pytest.mark.parametrize("accumulate", [1, 2])
def test_no_gradient_is_computed_for_what_is_frozen(accumulate):
    """A probe makes the forward pass and little else: a third of a step. A frozen stage costs its forward pass."""
    same = {"batch_size": 16, "data.image_size": 16, "accumulate_steps": accumulate, "ema.decay": 0.9}
    (whole, _), (half, _), (probe, state) = (
        step_of(**same, **{"optimizer.rates": rates}) for rates in ((), TRUNK[:3], PROBE)
    )
    assert probe["flops"] < 0.4 * whole["flops"]
    assert probe["flops"] < half["flops"] < 0.85 * whole["flops"]
    memory = [leaf.shape for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert sorted(memory) == [(10,), (16, 10)]  # momentum of fc alone


def test_an_explicit_rate_of_one_changes_nothing_in_the_step():
    programs = []
    for rates in ((), (("layer1", 1.0),)):
        made = designed(**{"optimizer.rates": rates})
        lowered = made.parallel.train_step.lower(needs.abstract_state(made), needs.abstract_batch(made))
        programs.append(lowered.as_text())
    assert programs[0] == programs[1]


@pytest.mark.slow
@pytest.mark.usefixtures("drawn_once")
def test_a_run_leaves_frozen_parts_and_their_average_equal_to_the_bit(tmp_path):
    """Through the loop, with decay, momentum and an average; stopped and resumed."""
    config = configured(**{"optimizer.rates": TRUNK, "ema.decay": 0.9, "optimizer.weight_decay": 0.1})
    run = experiment.build(config)
    assert run.config.model.kwargs.freeze_norm == ("stem", "layer1")
    before = jax.tree.map(np.array, run.create_state().variables)
    loop.train(config, str(tmp_path))
    assert workdirs.load_config(str(tmp_path))["model"]["kwargs"]["freeze_norm"] == ["stem", "layer1"]
    with checkpoint.Checkpointer(str(tmp_path)) as checkpoints:
        state = checkpoints.restore(run.abstract_state(), run.parallel.state_sharding)
    assert int(state.step) == 16
    for after in (state.variables, state.ema):
        changed = moved(before, after)
        still = {name for name in flat(before) if inside(name, run.frozen)}
        assert not changed & still
        assert changed == flat(before).keys() - still
    assert loop.evaluate(config, str(tmp_path))["count"] == 64
    loop.train(config, str(tmp_path))  # goes on from the end: its config is the same, with what was filled in


def half_as_much_again(average, variables, step):
    """No true average: of two equal numbers that one is the same on a processor that multiplies and adds in one."""
    return jax.tree.map(lambda a, b: 0.75 * (a + b), average, variables)


@functools.cache
def part_frozen(mode, count):
    """On so many devices: what is frozen, the variables before, and variables, average and size of gradient after."""
    frozen = ("conv1", "bn1", "layer1.0.conv1", "layer1.0.bn1", "layer1.0.conv2", "layer1.0.bn2")
    model = resnet_jax.ResNet(
        resnet_jax.BasicBlock, (1, 1), num_classes=5, stage_features=(8, 16), stem="cifar", stem_features=8,
        freeze_norm=("stem", "layer1"), axis_name=AXIS,
    )  # fmt: skip
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    rng = np.random.default_rng(0)
    variables["batch_stats"] = jax.tree.map(
        lambda x: rng.uniform(0.5, 1.5, x.shape).astype(x.dtype), variables["batch_stats"]
    )
    before = jax.tree.map(np.asarray, variables)
    numbers = NUMBERS | {"axis_name": AXIS}
    parallel = parallelize(
        functools.partial(train_step, update_average=half_as_much_again, **numbers),
        functools.partial(eval_step, **numbers),
        mode=mode,
        devices=jax.devices()[:count],
    )
    create = functools.partial(create_train_state, model, tx=optax.sgd(0.1, 0.9), ema=True, frozen=frozen)
    state = jax.jit(create, out_shardings=parallel.state_sharding)(before)
    for seed in range(3):
        state, sums = parallel.train_step(state, parallel.shard(make_batch(12, seed=seed)))
    return frozen, before, *jax.device_get((state.variables, state.ema, sums["grad_norm"]))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["pmap", "jit"])
def test_three_devices_leave_frozen_parts_equal_to_the_bit_and_do_what_one_does(mode):
    """Three, since (x + x + x) / 3 is not always x."""
    one = part_frozen("jit", 1)
    three = part_frozen(mode, 3)
    for frozen, before, variables, average, _ in (one, three):
        for after in (variables, average):
            assert {name for name in moved(before, after) if inside(name, frozen)} == set()
            assert any(not inside(name, frozen) for name in moved(before, after))
        assert "batch_stats.layer2.0.bn1.mean" in moved(before, variables)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), one[2::2], three[2::2])


@pytest.mark.slow
def test_norms_frozen_by_the_model_alone_do_not_decay():
    made = designed(parallel="jit", freeze_norm=("layer1",), **{"optimizer.weight_decay": 0.5})
    state = made.create_state()
    before = jax.tree.map(np.array, state.variables)
    state, _ = made.parallel.train_step(state, made.parallel.shard(make_batch(8)))
    changed = moved(before, state.variables)
    assert {name for name in changed if name.startswith("params.layer1.0.")} == {
        "params.layer1.0.conv1.kernel", "params.layer1.0.conv2.kernel"
    }  # fmt: skip


# As PyTorch does it ---------------------------------------------------------------------------------------------


def part_like_torch(config, model, variables):
    """State and step of a config for a given net."""
    parts = recipe.resolve_parts(config, lambda: variables)
    model = model.clone(freeze_norm=parts.freeze_norm) if parts.freeze_norm else model
    tx = recipe.create_optimizer(config, optax.constant_schedule(config.optimizer.learning_rate), parts.rates)
    state = create_train_state(model, variables, tx, frozen=parts.frozen)
    return state, jax.jit(functools.partial(train_step, **NUMBERS), donate_argnums=0)


def torch_groups(reference, rate):
    """SGD's parameter groups for `TRUNK`, each with its rate; what is frozen wants no gradient, its norms `eval()`."""
    import torch

    factor = dict(TRUNK)
    reference.train()
    groups = []
    for name, part in reference.named_children():
        if factor.get(name) == 0:
            part.requires_grad_(False)
            for module in part.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.eval()
        elif list(part.parameters()):
            groups.append({"params": list(part.parameters()), "lr": rate * factor.get(name, 1.0)})
    return groups


def test_eight_steps_with_frozen_parts_and_rates_equal_pytorchs_parameter_groups(x64):
    torch = pytest.importorskip("torch")
    pytest.importorskip("timm")
    from test_training_parity import start, torch_loss, worst

    reference, model, variables, batch, images = start("cifar_resnet20", blocks=1)
    config = default.get_config()
    config.optimizer.update(learning_rate=0.05, weight_decay=1e-3, rates=TRUNK, clip_norm=1.0)
    state, step = part_like_torch(config, model, variables)
    optimizer = torch.optim.SGD(torch_groups(reference, 0.05), momentum=0.9, nesterov=True, weight_decay=1e-3)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    before = {key: value.clone() for key, value in reference.state_dict().items()}
    for _ in range(8):
        state, sums = step(state, batch)
        optimizer.zero_grad()
        torch_loss(reference, images, batch).backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)  # over those that train alone
        optimizer.step()
        assert float(sums["grad_norm"]) == pytest.approx(norm.item(), rel=1e-8)
    after = resnet_jax.to_torch(model, state.variables)
    assert worst(after, reference.state_dict()) < 1e-8
    for name, value in before.items():
        if "num_batches" not in name:
            frozen = name.startswith(("conv1.", "bn1.", "layer1."))
            assert np.array_equal(after[name], value.numpy()) == frozen, name


@pytest.mark.slow
def test_five_steps_of_adamw_with_layer_decay_equal_timms_groups(x64):
    torch = pytest.importorskip("torch")
    pytest.importorskip("timm")
    from test_training_parity import start, torch_loss, worst
    from timm.optim import param_groups_layer_decay

    reference, model, variables, batch, images = start("test_resnet", blocks=1, stages=3)
    config = default.get_config()
    config.optimizer.update(name="adamw", learning_rate=1e-3, weight_decay=0.05, decayed="kernels", layer_decay=0.7)
    state, step = part_like_torch(config, model, variables)
    groups = param_groups_layer_decay(reference, weight_decay=0.05, layer_decay=0.7)
    for group in groups:  # as timm's schedulers apply it
        group["lr"] = 1e-3 * group["lr_scale"]
    optimizer = torch.optim.AdamW(groups)
    for _ in range(5):
        state, _ = step(state, batch)
        optimizer.zero_grad()
        torch_loss(reference, images, batch).backward()
        optimizer.step()
    assert worst(resnet_jax.to_torch(model, state.variables), reference.state_dict()) < 1e-8
    assert worst(resnet_jax.to_torch(model, state.variables), {
        key: torch.from_numpy(np.array(value)) for key, value in resnet_jax.to_torch(model, variables).items()
    }) > 1e-3  # fmt: skip


# On the command line --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "rates"),
    [
        ("('fc',10.0),", (("fc", 10.0),)),
        ("('',0),('fc',1)", (("", 0), ("fc", 1))),
        ("(('layer1.0',0.1),('fc',10.0))", (("layer1.0", 0.1), ("fc", 10.0))),
    ],
)
def test_rates_are_written_on_the_command_line_as_the_error_says(flag, rates):
    config = config_file.load(
        "configs/default.py", [f"--config.optimizer.rates={flag}", "--config.optimizer.layer_decay=0.5"]
    )
    assert config.optimizer.rates == rates
    assert config.optimizer.layer_decay == 0.5
    recipe.check(config, rows=8)


@pytest.mark.parametrize(("batch", "share"), [(1024, 0.25), (8192, 1 / 32), (256, 1.0), (128, 1.0)])
def test_the_warm_up_of_imagenet_starts_from_the_rate_of_a_batch_of_256_or_from_its_own(batch, share):
    config = config_file.load("configs/imagenet_resnet50.py", [f"--config.batch_size={batch}"])
    assert config.schedule.warmup_start == share
    assert config.schedule.warmup_start * config.optimizer.learning_rate == pytest.approx(0.1 * min(1, batch / 256))
