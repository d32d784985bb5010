"""Names of other repositories, and the network that a file holds."""

import functools
import re

import jax
import numpy as np
import pytest

import resnet_jax
from drawing import drawn
from resnet_jax.models.variants import ALIASES, VARIANTS, create_model
from resnet_jax.weights import convert
from resnet_jax.weights.errors import ConversionError
from resnet_jax.weights.names import native_names, rename
from resnet_jax.weights.recognise import identify


@functools.cache
def weights(name, **fields):
    """Random weights of a network under torchvision's names, counters included."""
    model = create_model(name, **fields)
    images = np.zeros((1, 32, 32, 3), np.float32)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    return convert.to_torch(model, drawn(shapes))


@functools.cache
def shapes_of(name, **fields):
    """The same with no memory behind them: one element, expanded."""
    shapes = convert.torch_shapes(create_model(name, **fields))
    return {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}


def prefixed(prefix, tensors):
    return {prefix + name: tensor for name, tensor in tensors.items()}


def headless(tensors):
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("fc.")}


def renamed(tensors, *rules):
    result = {}
    for name, tensor in tensors.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        result[name] = tensor
    return result


def huggingface(tensors):
    """Names of transformers' `ResNetForImageClassification`, worked out from its modules."""
    return renamed(
        tensors,
        (r"^conv1\.", "resnet.embedder.embedder.convolution."),
        (r"^bn1\.", "resnet.embedder.embedder.normalization."),
        (r"^layer(\d)\.(\d+)\.", lambda m: f"resnet.encoder.stages.{int(m[1]) - 1}.layers.{m[2]}."),
        (r"\.conv(\d)\.", lambda m: f".layer.{int(m[1]) - 1}.convolution."),
        (r"\.bn(\d)\.", lambda m: f".layer.{int(m[1]) - 1}.normalization."),
        (r"\.downsample\.0\.", ".shortcut.convolution."),
        (r"\.downsample\.1\.", ".shortcut.normalization."),
        (r"^fc\.", "classifier.1."),
    )


def pytorch_cifar100(tensors):
    """Names of weiaicunzai/pytorch-cifar100."""

    def residual(number):
        return lambda m: f"conv{int(m[1]) + 1}_x.{m[2]}.residual_function.{3 * int(m[3]) - number}."

    return renamed(
        tensors,
        (r"^conv1\.", "conv1.0."),
        (r"^bn1\.", "conv1.1."),
        (r"^layer(\d)\.(\d+)\.conv(\d)\.", residual(3)),
        (r"^layer(\d)\.(\d+)\.bn(\d)\.", residual(2)),
        (r"^layer(\d)\.(\d+)\.downsample\.", lambda m: f"conv{int(m[1]) + 1}_x.{m[2]}.shortcut."),
    )


def pytorch_cifar(tensors):
    """Names of kuangliu/pytorch-cifar."""
    return renamed(tensors, (r"^fc\.", "linear."), (r"\.downsample\.", ".shortcut."))


MLP = {"0.weight": np.ones((512, 512)), "0.bias": np.ones(512), "2.weight": np.ones((128, 512)), "2.bias": np.ones(128)}


def moco(tensors, version):
    """MoCo's file: query, key and queue under DataParallel's name; the head of version 1 is one layer, of 2 two."""
    head = {"weight": np.ones((128, 512)), "bias": np.ones(128)} if version == 1 else MLP
    net = headless(tensors) | prefixed("fc.", head)
    moving = {name: tensor + 1 for name, tensor in net.items()}
    queue = {"module.queue": np.ones((128, 9)), "module.queue_ptr": np.ones(1)}
    return prefixed("module.encoder_q.", net) | prefixed("module.encoder_k.", moving) | queue


# Description -> (names from those of resnet18, the number of classes that is left, what the log must say).
FOREIGN = {
    "plain": (lambda t: t, 1000, ""),
    "DataParallel": (lambda t: prefixed("module.", t), 1000, ""),
    "torch.compile": (lambda t: prefixed("_orig_mod.", t), 1000, ""),
    "both": (lambda t: prefixed("module._orig_mod.", t), 1000, ""),
    "Lightning": (lambda t: prefixed("model.net.", t), 1000, ""),
    "transformers": (huggingface, 1000, ""),
    "transformers, compiled": (lambda t: prefixed("_orig_mod.", huggingface(t)), 1000, ""),
    "transformers' backbone": (
        lambda t: {k.removeprefix("resnet."): v for k, v in huggingface(headless(t)).items()}, 0, "",
    ),
    "pytorch-cifar": (pytorch_cifar, 1000, ""),
    "pytorch-cifar100": (pytorch_cifar100, 1000, ""),
    "a dropout before the head": (lambda t: renamed(t, (r"^fc\.", "fc.1.")), 1000, ""),
    "mmpretrain": (
        lambda t: prefixed("backbone.", headless(t)) | {"head.fc.weight": t["fc.weight"], "head.fc.bias": t["fc.bias"]},
        1000, "",
    ),
    "a detector": (
        lambda t: prefixed("backbone.body.", headless(t)) | {"rpn.x": np.ones(3), "backbone.fpn.x": np.ones(3)},
        0, "under 'backbone.body.' and passed over backbone.fpn (1), rpn (1)",
    ),
    "MoCo v1": (lambda t: moco(t, 1), 0, "module.encoder_k (122), module.encoder_q.fc (2), module.queue (1)"),
    "MoCo v2": (lambda t: moco(t, 2), 0, "module.encoder_k (124), module.encoder_q.fc (4), module.queue (1)"),
    "MoCo v3": (
        lambda t: prefixed("module.base_encoder.", headless(t) | prefixed("fc.", MLP))
        | prefixed("module.momentum_encoder.", headless(t)) | prefixed("module.predictor.", MLP),
        0, "passed over module.base_encoder.fc (4), module.momentum_encoder (120), module.predictor (4)",
    ),
    "SimCLR": (lambda t: prefixed("backbone.", headless(t) | prefixed("fc.", MLP)), 0, "backbone.fc (4)"),
    "SimSiam": (lambda t: prefixed("module.encoder.", headless(t) | prefixed("fc.", MLP)), 0, "module.encoder.fc (4)"),
    "Barlow Twins": (
        lambda t: prefixed("module.backbone.", headless(t)) | prefixed("module.projector.", MLP)
        | {"module.bn.running_mean": np.ones(9)},
        0, "module.bn (1), module.projector (4)",
    ),
    "SwAV": (
        lambda t: prefixed("module.", headless(t) | {"projection_head.0.weight": np.ones((9, 9))}),
        0, "module.projection_head (1)",
    ),
    "DINO": (
        lambda t: prefixed("module.backbone.", headless(t)) | {"module.head.mlp.0.weight": np.ones((9, 9))},
        0, "module.head (1)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("source", FOREIGN)
def test_foreign_names_are_recognised_and_converted(source, caplog):
    foreign, classes, said = FOREIGN[source]
    tensors = foreign(weights("resnet18"))
    native = native_names(tensors)
    assert ("passed over" in caplog.text) == bool(said)
    assert said in caplog.text
    wanted = weights("resnet18") if classes else headless(weights("resnet18"))
    wanted = {name: tensor for name, tensor in wanted.items() if not name.endswith("num_batches_tracked")}
    assert native.keys() == wanted.keys()
    assert all(native[name] is wanted[name] for name in wanted)
    name, overrides = identify(tensors)
    assert (name, overrides) == ("resnet18", {} if classes else {"num_classes": 0})
    convert.from_torch(create_model(name, **overrides), tensors)


@pytest.mark.parametrize(
    ("name", "fields", "expected"),
    [
        ("cifar_resnet20", {}, {}),
        ("cifar_resnet20", {"shortcut": "B", "num_classes": 100}, {"num_classes": 100, "shortcut": "B"}),
        ("resnet18", {"stem": "cifar", "num_classes": 10}, {"num_classes": 10, "stem": "cifar"}),
        ("resnet50", {"num_classes": 0}, {"num_classes": 0}),
        ("resnet50_gn", {}, {}),
        ("seresnet50", {"num_classes": 7}, {"num_classes": 7}),
        ("test_resnet", {}, {}),
    ],
)
def test_the_network_is_identified(name, fields, expected):
    assert identify(shapes_of(name, **fields)) == (name, expected)


# Networks that have the tensors of a plainer one in the table.
TWINS = (
    *("resnetaa50", "resnetaa34d", "resnetaa50d", "resnetaa101d", "seresnextaa101d_32x8d"),
    *("resnetblur18", "resnetblur50", "resnetblur50d", "resnetblur101d"),
    *("cifar_plain20", "cifar_plain32", "cifar_plain44", "cifar_plain56"),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_every_network_of_the_table_is_identified(name, caplog):
    found, overrides = identify(shapes_of(name))
    assert overrides == {}
    assert (found != name) == (name in TWINS)
    if found != name:
        assert name in caplog.text
        plainer = {"anti_alias", "zero_init_residual", "shortcut"}
        left, right = ({k: v for k, v in VARIANTS[n].items() if k not in plainer} for n in (found, name))
        assert left == right
    assert not ALIASES.keys() & {found}


def test_grey_images_are_identified():
    tensors = dict(shapes_of("resnet18"))
    tensors["conv1.weight"] = tensors["conv1.weight"][:, :1]
    assert identify(tensors) == ("resnet18", {})


def test_twins_are_named_and_an_old_filter_tells_them_apart(caplog):
    assert identify(shapes_of("resnet50"))[0] == "resnet50"
    assert "taken for resnet50; resnetaa50 and resnetblur50 would have the same tensors" in caplog.text
    filtered = shapes_of("resnetblur50") | {"layer2.0.aa.filt": np.ones((1, 1, 3, 3))}
    assert identify(filtered)[0] == "resnetblur50"


def test_no_such_network_names_the_nearest():
    tensors = dict(shapes_of("resnet18"))
    tensors["layer1.0.conv1.weight"] = np.ones((65, 64, 3, 3))
    with pytest.raises(ConversionError, match=r"no network of the table .* the nearest: resnet18 \(1 tensors differ\)"):
        identify(tensors)
    with pytest.raises(ConversionError, match="none has as many blocks in each stage"):
        identify({"fc.weight": np.ones((3, 3)), "layer1.0.conv1.weight": np.ones((3, 3, 1, 1))})
    with pytest.raises(ConversionError, match="these 0 tensors"):
        identify({})


def test_a_network_that_is_written_twice_is_one_and_of_two_one_can_be_said():
    tensors = weights("cifar_resnet20")
    twice = prefixed("a.", tensors) | prefixed("b.", tensors)
    assert native_names(twice).keys() == native_names(tensors).keys()
    other = twice | {"b.layer1.0.bn1.bias": np.full(16, 2.0, np.float32)}
    found = rename(other, prefix="b").tensors
    np.testing.assert_array_equal(found["layer1.0.bn1.bias"], np.full(16, 2.0))


NEW_NAMES = {
    "numbers of a Sequential": lambda name: re.sub(
        r"^(conv1|bn1|layer(\d)|fc)\.",
        lambda m: {"conv1": "0.", "bn1": "1.", "fc": "9."}.get(m[1]) or f"{int(m[2]) + 3}.",
        name,
    ),
    "numbers below a prefix": lambda name: "model.backbone." + NEW_NAMES["numbers of a Sequential"](name),
    "detectron2's": lambda name: "backbone.bottom_up." + detectron2(name),
    "layer0": lambda name: re.sub(r"^(conv1|bn1)\.", r"layer0.\1.", name),
    "layer0 in numbers": lambda name: re.sub(r"^conv1\.", "layer0.0.", re.sub(r"^bn1\.", "layer0.1.", name)),
    "ClassyVision's": lambda name: "_feature_blocks." + name,
}


def detectron2(name):
    name = re.sub(r"^layer(\d)", lambda m: f"res{int(m[1]) + 1}", name)
    name = re.sub(r"\.bn(\d)\.", r".conv\1.norm.", name)
    name = name.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
    name = re.sub(r"^conv1\.", "stem.conv1.", re.sub(r"^bn1\.", "stem.conv1.norm.", name))
    return name.replace("fc.", "stem.fc.")


@pytest.mark.parametrize("whose", NEW_NAMES)
def test_names_of_others_are_torchvisions_in_the_end(whose):
    tensors = weights("resnet18")
    renamed = {NEW_NAMES[whose](name): tensor for name, tensor in tensors.items()}
    assert len(renamed) == len(tensors)
    found = native_names(renamed)
    wanted = native_names(tensors)
    assert found.keys() == wanted.keys()
    assert all(found[name] is wanted[name] for name in wanted)


@pytest.mark.parametrize("form", ["stem", "six names", "layer0"])
def test_deep_stems_have_many_names(form):
    tensors = weights("resnet26t")
    places = {
        "stem": ("stem.0", "stem.1", "stem.3", "stem.4", "stem.6", "stem.7"),
        "six names": ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3"),
        "layer0": tuple(f"layer0.{name}" for name in ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3")),
    }[form]
    ours = ("conv1.0", "conv1.1", "conv1.3", "conv1.4", "conv1.6", "bn1")
    renamed = {}
    for name, tensor in tensors.items():
        place = next((i for i, our in enumerate(ours) if name.startswith(our + ".")), None)
        renamed[name if place is None else places[place] + name.removeprefix(ours[place])] = tensor
    found, wanted = native_names(renamed), native_names(tensors)
    assert found.keys() == wanted.keys()
    assert all(found[name] is wanted[name] for name in wanted)


@pytest.mark.parametrize(
    ("extra", "what"),
    [
        ("attnpool.q_proj.weight", "CLIP's ResNet"),
        ("visual.attnpool.positional_embedding", "CLIP's ResNet"),
        ("root.conv.weight", "a BiT"),
        ("layer1.0.prelu.weight", "an IResNet"),
        ("vit.cls_token", "a vision transformer"),
    ],
)
def test_other_kinds_of_networks_are_refused_by_what_they_are(extra, what):
    with pytest.raises(ConversionError, match=what):
        native_names(weights("cifar_resnet20") | {extra: np.ones((2, 2))})


def test_so_is_one_for_video():
    with pytest.raises(ConversionError, match="3D convolutions"):
        native_names(weights("cifar_resnet20") | {"conv1.weight": np.ones((16, 3, 3, 7, 7))})


@pytest.mark.parametrize("name", ["." * 4000, "layer" + "1" * 5000 + ".0.conv1.weight", "a" * 513])
def test_names_longer_than_any_are_refused(name):
    with pytest.raises(ConversionError, match="is the name of no network's tensor"):
        native_names(weights("cifar_resnet20") | {name: np.ones(3)})


def test_a_part_can_be_dropped_and_what_is_not_there_cannot():
    tensors = weights("cifar_resnet20")
    mlp = {name: tensor for name, tensor in tensors.items() if not name.startswith("fc.")}
    mlp |= {"fc.0.weight": np.ones((5, 64)), "fc.0.bias": np.ones(5), "fc.2.weight": np.ones((3, 5))}
    assert "fc.0.weight" in rename(mlp).tensors
    assert not [name for name in rename(mlp, drop=["fc"]).tensors if name.startswith("fc")]
    with pytest.raises(ConversionError, match="nothing to drop under 'head': the names begin with bn1, conv1, fc,"):
        rename(mlp, drop=["head"])
    with pytest.raises(ConversionError, match="nothing stands under the prefix 'teacher'"):
        rename(mlp, prefix="teacher")


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (
            lambda t: prefixed("a.", t) | prefixed("b.", t | {"layer1.0.bn1.bias": np.ones(16, np.float32)}),
            r"holds 2 networks, under 'a\.', 'b\.': say which one, as prefix='a'",
        ),
        (lambda t: t | {"linear.bias": t["fc.bias"]}, r"names 'fc.bias' twice, as 'fc.bias' and as 'linear.bias'"),
        (
            lambda t: t | {"layer1.0.shortcut.0.weight": 1, "layer1.0.downsample.0.weight": 1},
            r"'layer1.0.downsample.0.weight' twice",
        ),
    ],
)
def test_names_that_contradict_are_refused(tensors, said):
    with pytest.raises(ConversionError, match=said):
        native_names(tensors(weights("cifar_resnet20")))


def test_a_head_of_several_layers_without_a_telling_prefix_is_left_over():
    tensors = headless(weights("resnet18")) | prefixed("fc.", MLP)
    with pytest.raises(ConversionError, match=r"left over, unknown to the model \(4\)"):
        resnet_jax.from_torch(create_model("resnet18", num_classes=0), tensors)


ONE_BLOCK = {"conv1.weight": np.ones((4, 3, 3, 3)), "layer1.0.conv1.weight": np.ones((4, 4, 3, 3))}


@pytest.mark.parametrize("wrapper", ["module", "_orig_mod", "model", "net", "network", "resnet"])
def test_below_a_wrapper_a_head_of_several_layers_is_the_networks_own(wrapper):
    """And no self-supervised loss's: it is not dropped without a word of `from_torch`."""
    native = native_names(prefixed(f"{wrapper}.", ONE_BLOCK | prefixed("fc.", MLP)))
    assert native.keys() == {*ONE_BLOCK, *prefixed("fc.", MLP)}


@pytest.mark.parametrize(
    "copy",
    [
        *("encoder_k", "momentum_encoder", "momentum_backbone", "backbone_momentum", "teacher"),
        *("target_encoder", "target_backbone", "target_network", "ema", "ema_model", "model_ema"),
    ],
)
def test_a_slowly_moving_copy_beside_the_network_is_passed_over(copy, caplog):
    moving = {name: tensor + 1 for name, tensor in ONE_BLOCK.items()}
    native = native_names(prefixed("student.", ONE_BLOCK) | prefixed(f"{copy}.", moving))
    assert all(native[name] is tensor for name, tensor in ONE_BLOCK.items())
    assert f"passed over {copy} (2)" in caplog.text
