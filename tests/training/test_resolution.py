"""The size of images: evaluation at another one than training, and training at sizes that rise."""

import json
import logging
import re

import numpy as np
import pytest
from PIL import Image
from test_pipeline import assert_same, concatenate, numbered, take

from resnet_jax import cli
from resnet_jax.data import pipeline, transforms
from resnet_jax.plan import needs
from resnet_jax.runs import history, workdirs
from resnet_jax.training import checkpoint, experiment, inputs, loop
from tiny import equal, final_state, tiny_config

SHORT = {"num_epochs": 1.0, "schedule.warmup_epochs": 0.0}

# Evaluation ---------------------------------------------------------------------------------------------


def photo(height, width):
    rng = np.random.default_rng((height, width))
    coarse = Image.fromarray(rng.integers(256, size=(9, 12, 3), dtype=np.uint8)).resize((width, height), 3)
    return np.asarray(coarse) // 2 + rng.integers(128, size=(height, width, 3), dtype=np.uint8)


def evaluated(image, **data):
    config = tiny_config(**{f"data.{key}": value for key, value in data.items()})
    return inputs.eval_transform(config.data)(image)


@pytest.mark.parametrize("shape", [(375, 500), (500, 331), (180, 240)])
def test_torchvisions_v2_test_is_had_from_a_training_size_of_176(shape):
    presets = pytest.importorskip("torchvision.transforms._presets")
    reference = presets.ImageClassification(crop_size=224, resize_size=232, mean=(0.0,) * 3, std=(1.0,) * 3)
    expected = np.moveaxis(np.rint(255 * reference(Image.fromarray(photo(*shape))).numpy()), 0, -1)
    found = evaluated(photo(*shape), image_size=176, eval_size=224, eval_resize=232)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shape", [(375, 500), (500, 331), (180, 240)])
def test_timms_a3_test_is_had_from_a_training_size_of_160(shape):
    timm_data = pytest.importorskip("timm.data")
    reference = timm_data.create_transform(
        224, is_training=False, crop_pct=0.95, interpolation="bicubic", normalize=False
    )
    expected = np.moveaxis(reference(Image.fromarray(photo(*shape))).numpy(), 0, -1)
    data = {"image_size": 160, "eval_size": 224, "eval_resize": 235, "eval_interpolation": "bicubic"}
    np.testing.assert_array_equal(evaluated(photo(*shape), **data), expected)


def test_the_defaults_are_one_size_in_bilinear():
    expected = transforms.eval_transform(8, 8, "bilinear")
    assert inputs.eval_transform(tiny_config().data) == expected
    assert inputs.eval_transform(tiny_config(**{"data.eval_size": 12}).data).resize_size == 12


def test_a_run_is_tested_at_its_test_size_by_the_loop_and_from_its_workdir(tmp_path, capsys):
    """Bigger than in training, with a last batch that is padded; the same images counted right by both ways."""
    sizes = {"data.eval_size": 12, "data.eval_resize": 13, "data.eval_interpolation": "bicubic"}
    config = tiny_config(**sizes, **SHORT, **{"data.num_examples": 60})
    with experiment.eval_batches(experiment.build(config)) as batches:
        shapes = {batch["image"].shape for batch in batches}
    assert shapes == {(8, 12, 12, 3)}
    result = loop.train(config, str(tmp_path))
    assert result["count"] == 60
    assert cli.main(["evaluate", f"--model={tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert "image_size=12, resize_size=13, interpolation='bicubic'" in out
    assert f"({result['correct']:.0f}/60)" in out


def test_the_workdir_of_a_run_from_before_these_keys_is_evaluated_as_it_was(tmp_path, capsys):
    config = tiny_config(**SHORT)
    result = loop.train(config, str(tmp_path))
    stored = workdirs.load_config(str(tmp_path))
    for key in ("eval_size", "eval_interpolation", "early_sizes", "early_until", "crop_scale"):
        del stored["data"][key]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert cli.main(["evaluate", f"--model={tmp_path}"]) == 0
    assert f"({result['correct']:.0f}/64)" in capsys.readouterr().out


# Training sizes that rise -------------------------------------------------------------------------------

SMALL, MEDIUM, LARGE = (transforms.train_transform(size, padding=2, fill=(9,)) for size in (4, 6, 8))
RISING = {0: SMALL, 3: MEDIUM, 5: LARGE}


@pytest.mark.parametrize("repeats", [1, 3])
def test_each_batch_is_that_of_a_run_of_its_size_alone(repeats):
    """The same examples, windows and flips: only the size is another."""
    alone = [take(8, transform=each, repeats=repeats) for each in (SMALL, MEDIUM, LARGE)]
    expected = alone[0][:3] + alone[1][3:5] + alone[2][5:]
    assert_same(take(8, transform=RISING, repeats=repeats), expected)


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5, 6])
def test_a_restart_in_a_size_at_a_change_and_across_it_has_the_same_batches(step):
    assert_same(take(8 - step, transform=RISING, start_step=step), take(8, transform=RISING)[step:])


@pytest.mark.parametrize("num_threads", [0, 1, 4])
def test_threads_do_not_change_batches_whose_size_rises(num_threads):
    assert_same(take(8, transform=RISING, num_threads=num_threads), take(8, transform=RISING, num_threads=2))


@pytest.mark.parametrize("process_count", [2, 4])
def test_hosts_together_have_the_batches_of_one_whose_size_rises(process_count):
    hosts = [take(8, transform=RISING, process_index=i, process_count=process_count) for i in range(process_count)]
    assert_same(concatenate(hosts), take(8, transform=RISING))


@pytest.mark.slow
@pytest.mark.soak
def test_workers_do_not_change_batches_whose_size_rises():
    whole = take(8, transform=RISING)
    assert_same(take(8, transform=RISING, num_workers=2, num_threads=1), whole)
    assert_same(take(4, transform=RISING, num_workers=2, num_threads=1, start_step=4), whole[4:])


def test_what_stands_for_an_unreadable_image_has_the_size_of_its_step():
    batches = take(8, numbered(16, broken=(3,)), transform=RISING, on_error="skip")
    assert [batch["image"].shape[1] for batch in batches] == [4, 4, 4, 6, 6, 8, 8, 8]
    assert all(batch["mask"].sum() == 15 for batch in batches)


def test_transforms_without_one_for_step_0_are_refused():
    for given in ({}, {2: SMALL}, {-1: SMALL, 0: LARGE}):
        with pytest.raises(ValueError, match=re.escape(f"transform has the steps {sorted(given)}, of which the first")):
            take(1, transform=given)


# The ramps of FFCV's rn18 and rn50 configs, 16 to 88: epochs, start_ramp, end_ramp; 160 to 192 pixels in all.
FFCV = {16: (11, 13), 24: (17, 20), 32: (23, 27), 40: (29, 34), 56: (41, 48), 88: (65, 76)}


def ffcv_size(epoch, start, end, least=160, greatest=192):
    """FFCV's rule: between the ends of the ramp the nearest multiple of 32, halves to the even one."""
    if epoch <= start:
        return least
    if epoch >= end:
        return greatest
    return round((least + (greatest - least) * (epoch - start) / (end - start)) / 32) * 32


@pytest.mark.parametrize("epochs", FFCV)
def test_ffcvs_ramps_can_be_said(epochs):
    by_epoch = [ffcv_size(epoch, *FFCV[epochs]) for epoch in range(epochs)]
    until = float(by_epoch.index(192))
    config = tiny_config(
        num_epochs=float(epochs),
        **{"data.image_size": 192, "data.early_sizes": (160,), "data.early_until": (until,), "data.eval_size": 256},
    )
    sizes = inputs.train_sizes(config, steps_per_epoch=1251)
    for epoch, expected in enumerate(by_epoch):
        for step in (1251 * epoch, 1251 * epoch + 1250):
            assert sizes[max(first for first in sizes if first <= step)] == expected


def test_sizes_change_on_whole_steps_rounded_as_the_schedules_boundaries_are():
    config = tiny_config(**{"data.image_size": 8, "data.early_sizes": (4, 6), "data.early_until": (0.32, 1.7)})
    assert inputs.train_sizes(config, 8) == {0: 4, 3: 6, 14: 8}  # 2.56 and 13.6 of 16 steps


def rising_config(**changes):
    """8 steps an epoch, 16 in all: 4 pixels, from step 5 on 6, from step 8 on 8; a checkpoint each 4 steps."""
    sizes = {"data.early_sizes": (4, 6), "data.early_until": (0.625, 1.0), "checkpoint_every_steps": 4}
    return tiny_config(**(sizes | {"keep_checkpoints": 9} | changes))


@pytest.fixture(scope="module")
def risen(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("risen")
    loop.train(rising_config(), str(workdir))
    return workdir


class Killed(Exception):
    pass


# Restarts from the checkpoints of steps 4 (across a change), 8 (at one) and 12 (within a size).
@pytest.mark.parametrize("killed_at", [5, 10, 14])
def test_a_killed_run_ends_with_the_same_bits(risen, tmp_path, monkeypatch, caplog, killed_at):
    original = experiment.train_batches

    def breaking(run, start_step):
        for step, batch in enumerate(original(run, start_step)):
            if step == killed_at:
                raise Killed
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "train_batches", breaking)
        with pytest.raises(Killed):
            loop.train(rising_config(), str(tmp_path))
    start = killed_at // 4 * 4
    with checkpoint.Checkpointer(str(tmp_path)) as checkpoints:
        assert checkpoints.latest_step() == start
    with caplog.at_level(logging.INFO, logger="resnet_jax"):
        loop.train(rising_config(), str(tmp_path))
    assert equal(final_state(risen, rising_config()), final_state(tmp_path, rising_config()))
    told = re.findall(r"step (\d+): images of (\d+) pixels from here on; compiling the training step", caplog.text)
    assert told == [(str(step), str(size)) for step, size in ((5, 6), (8, 8)) if step > start]


def test_the_sizes_of_a_run_matter_and_are_recorded(risen, tmp_path):
    loop.train(tiny_config(checkpoint_every_steps=4, keep_checkpoints=9), str(tmp_path))
    assert not equal(final_state(risen, rising_config()), final_state(tmp_path, tiny_config()))
    records = history.read_metrics(str(risen))
    assert [record["step"] for record in history.test_records(records)] == [8, 16]
    with pytest.raises(ValueError, match=r"config.data.early_until: \[0.625, 1.0\] there, \[0.625, 1.5\] now"):
        loop.train(rising_config(**{"data.early_until": (0.625, 1.5)}), str(risen))


def test_the_plan_is_that_of_the_largest_size():
    run = experiment.build(rising_config(parallel="jit"))
    assert needs.abstract_batch(run)["image"].shape == (8, 8, 8, 3)
    with experiment.train_batches(run, 0) as batches:
        assert next(batches)["image"].shape == (8, 4, 4, 3)


# The area of the crop -----------------------------------------------------------------------------------


class TorchRandom:
    def __init__(self, torch):
        self.torch = torch

    def uniform(self, low, high):
        return self.torch.empty(1).uniform_(low, high).item()

    def integers(self, high):
        return self.torch.randint(0, high, size=(1,)).item()


def test_crop_scale_is_torchvisions_scale():
    torch = pytest.importorskip("torch")
    vision = pytest.importorskip("torchvision.transforms")
    data = {"crop": "resized", "crop_scale": (0.35, 0.8), "decoder": "pillow", "image_size": 24}
    config = tiny_config(**{f"data.{key}": value for key, value in data.items()})
    transform = inputs.train_transform(config.data, 24)
    for seed in range(30):
        image = photo(60, 80)
        torch.manual_seed(seed)
        expected = np.asarray(vision.RandomResizedCrop(24, scale=(0.35, 0.8))(Image.fromarray(image)))
        torch.manual_seed(seed)
        np.testing.assert_array_equal(transform(image, TorchRandom(torch)), expected)


def test_crop_scale_holds_for_encoded_images_too(tmp_path):
    """A window of all of the image is all of it, whichever decoder reads it."""
    pytest.importorskip("cv2")
    path = tmp_path / "x.jpg"
    Image.fromarray(photo(40, 40)).save(path)
    for decoder in ("opencv", "pillow"):
        settings = {"crop": "resized", "crop_scale": (1.0, 1.0), "decoder": decoder, "flip": False}
        transform = transforms.train_transform(40, **settings)
        found = {transform.from_encoded(path.read_bytes(), 3, np.random.default_rng(i)).tobytes() for i in range(30)}
        whole = np.asarray(Image.open(path)).astype(int)
        farthest = max(np.abs(np.frombuffer(each, np.uint8).reshape(40, 40, 3) - whole).mean() for each in found)
        assert farthest < 1


# Refusals -----------------------------------------------------------------------------------------------

EARLY = {"data.early_sizes": (4, 6), "data.early_until": (0.5, 1.0)}
REFUSED = {
    "lengths": (EARLY | {"data.early_until": (0.5,)}, r"early_sizes=\(4, 6\) and config.data.early_until=\(0.5,\)"),
    "no rise": (EARLY | {"data.early_until": (1.0, 1.0)}, r"early_until=\(1.0, 1.0\) must be epochs that rise"),
    "at 0": (
        EARLY | {"data.early_until": (0.0, 1.0)},
        r"early_until=\(0.0, 1.0\) must be a tuple, each a number in \(0, inf\)",
    ),
    "at the end": (EARLY | {"data.early_until": (0.5, 2.0)}, r"early_until=\(0.5, 2.0\).*config.num_epochs=2.0"),
    "nan": (EARLY | {"data.early_until": (0.5, float("nan"))}, r"early_until=\(0.5, nan\) must be a tuple, each"),
    "one step": (EARLY | {"data.early_until": (0.5, 0.51)}, r"steps \[4, 4\] of 16, at 8 an epoch \(config.batch_size"),
    "size 0": (EARLY | {"data.early_sizes": (0, 6)}, r"early_sizes=\(0, 6\) must be a tuple, each a whole number"),
    "half pixels": (EARLY | {"data.early_sizes": (4.5, 6)}, r"early_sizes=\(4.5, 6\) must be a tuple, each a whole"),
    "not below": (EARLY | {"data.early_sizes": (4, 8)}, r"early_sizes=\(4, 8\) .*config.data.image_size=8"),
    "eval_size": ({"data.eval_size": -1}, r"config.data.eval_size=-1 must be a whole number, 0"),
    "eval_resize": ({"data.eval_resize": 7}, r"config.data.eval_resize=7 is less than config.data.image_size=8"),
    "both": ({"data.eval_resize": 9, "data.eval_size": 10}, r"eval_resize=9 is less than config.data.eval_size=10"),
    "lanczos": ({"data.eval_interpolation": "lanczos"}, r"eval_interpolation='lanczos' is not known: use 'bilinear'"),
    "scale": ({"data.crop": "resized", "data.crop_scale": (0.5, 0.2)}, r"data: crop_scale=\(0.5, 0.2\) must be two"),
    "scale 0": (
        {"data.crop": "resized", "data.crop_scale": (0.0, 1.0)},
        r"crop_scale=\(0.0, 1.0\) must be 2 numbers, each",
    ),
    "padded": ({"data.crop_scale": (0.35, 1.0)}, r"crop_scale=\(0.35, 1.0\) is of the crop 'resized'.* crop='pad'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_sizes_that_contradict_are_refused_before_anything_is_compiled(name):
    changes, said = REFUSED[name]
    with pytest.raises(ValueError, match=said):
        experiment.build(tiny_config(**changes))


def test_what_is_refused_here_is_fine_without_the_change():
    run = experiment.build(tiny_config(**EARLY, **{"data.eval_size": 10, "data.eval_resize": 10}))
    assert isinstance(experiment.train_batches(run, 16), pipeline.Batches)
