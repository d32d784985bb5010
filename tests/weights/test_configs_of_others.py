"""Whatever stands in a config.json is honoured, or refused by the key's name in one class; nothing else is raised."""

import contextlib
import copy
import json

import numpy as np
import pytest
from test_one_way_in import CIFAR, NAMES, PREPARED, PROCESSOR, STATED, make_run, random_variables

import resnet_jax
from resnet_jax.weights import sources
from resnet_jax.weights.files import formats

ODD = [
    *(None, True, False, 0, -1, 1, 1.5, 10**30, 10**400, 1e308, float("nan"), float("inf")),
    *("", "x", "\ud800", "1" * 5000, [], [1], [[]], [None], ["x"], [10**30], [1e308] * 3, [float("nan")] * 3),
    *({}, {"0": "x"}, {"x": None}, [{}], [1] * 5000),
]


def timm(folder, **ours):
    resnet_jax.save_pretrained(CIFAR, random_variables(CIFAR), folder, preprocessing=PREPARED, label_names=NAMES)
    return json.loads((folder / "config.json").read_text())


def of_timm(folder):
    config = timm(folder)
    del config["resnet_jax"]
    arguments = {"output_stride": 16, "global_pool": "avg", "drop_rate": 0.1, "drop_path_rate": 0.1}
    return {"config.json": config | {"architecture": "resnet18", "model_args": arguments}}


def of_ours(folder):
    config = timm(folder)
    fields = ("stage_features", "block_widths", "groups", "stem", "act", "norm", "attn", "anti_alias")
    given = {field: getattr(CIFAR, field) for field in fields}
    config["resnet_jax"]["arguments"] |= json.loads(json.dumps(given)) | {"stage_sizes": [3, 3, 3]}
    return {"config.json": config}


def of_transformers(folder):
    formats.save_state_dict(folder / "model.safetensors", {"x": np.zeros(1)})
    return {"config.json": STATED, "preprocessor_config.json": PROCESSOR | {"crop_pct": 0.9, "rescale_factor": 1 / 255}}


def of_a_run(folder):
    folder.mkdir(exist_ok=True)
    make_run(folder)
    return {name: json.loads((folder / name).read_text()) for name in ("config.json", "classes.json")}


def keys(tree, above=()):
    """Every key of a tree of objects, as the path to it."""
    for key, value in tree.items() if isinstance(tree, dict) else ():
        yield (*above, key)
        yield from keys(value, (*above, key))


def changed(tree, path, value):
    tree = copy.deepcopy(tree)
    inner = tree
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return tree


def ask(folder):
    """Asks for all that is stated of a source, but not for its tensors."""
    found = sources.locate(folder)
    if found.name is not None:
        resnet_jax.create_model(found.name, **found.arguments)
    with contextlib.suppress(sources.NotStated):
        found.preprocessing()


def refusal(folder):
    try:
        ask(folder)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("made", [of_timm, of_ours, of_transformers, of_a_run], ids=lambda f: f.__name__)
def test_every_wrong_value_of_every_key_is_one_error_that_names_the_file(made, tmp_path):
    files = made(tmp_path)
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    ask(tmp_path)
    tried = refused = 0
    for name, content in files.items():
        paths = list(keys(content)) if isinstance(content, dict) else [()]
        for path in paths:
            for value in ODD:
                (tmp_path / name).write_text(json.dumps(changed(content, path, value) if path else value))
                tried += 1
                said = refusal(tmp_path)
                refused += said is not None
                assert said is None or str(tmp_path) in said, (path, value, said)
        (tmp_path / name).write_text(json.dumps(content))
    assert refused > tried / 3  # the rest are keys that say nothing of the network, and values that are right


NAN = [float("nan")] * 3


@pytest.mark.parametrize(
    ("made", "name", "path", "value"),
    [
        (of_timm, "config.json", ("num_classes",), True),
        (of_timm, "config.json", ("num_classes",), 10**30),
        (of_timm, "config.json", ("pretrained_cfg", "mean"), NAN),
        (of_timm, "config.json", ("pretrained_cfg", "mean"), [1e308] * 3),
        (of_ours, "config.json", ("resnet_jax", "arguments", "stage_sizes"), [10**9]),
        (of_transformers, "config.json", ("embedding_size",), True),
        (of_transformers, "config.json", ("num_channels",), 10**30),
        (of_transformers, "preprocessor_config.json", ("image_std",), NAN),
        (of_a_run, "config.json", ("model", "num_classes"), True),
        (of_a_run, "config.json", ("data", "image_size"), 10**9),
        (of_a_run, "config.json", ("data", "mean"), NAN),
    ],
    ids=lambda value: ".".join(value) if isinstance(value, tuple) else "",
)
def test_what_no_network_has_is_refused_by_the_keys_name(made, name, path, value, tmp_path):
    for file, content in made(tmp_path).items():
        (tmp_path / file).write_text(json.dumps(changed(content, path, value) if file == name else content))
    assert path[-1] in refusal(tmp_path)
