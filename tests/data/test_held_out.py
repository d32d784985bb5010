"""Training images that are tested on instead of the test split."""

import pytest

from resnet_jax.configs import cifar10_resnet20, default
from resnet_jax.data import datasets
from resnet_jax.training import experiment


def test_the_last_images_are_held_out():
    config = default.get_config()
    config.data.held_out = 200
    run, whole = experiment.build(config), datasets.open_dataset("digits", "train")
    assert (len(run.train_data), len(run.test_data)) == (len(whole) - 200, 200)
    for part, first in ((run.train_data, 0), (run.test_data, len(whole) - 200)):
        for index in (0, 199):
            assert part.source[index] == whole.source[first + index]
            assert part.source.origin(index) == whole.source.origin(first + index)


def test_another_split_is_other_data():
    config = default.get_config()
    prints = []
    for config.data.held_out in (0, 200, 201):
        prints.append(experiment.build(config).config.data.fingerprint)
    assert len(set(prints)) == 3


@pytest.mark.parametrize("count", [1437, 5000])
def test_too_many_are_refused(count):
    config = default.get_config()
    config.data.held_out = count
    with pytest.raises(ValueError, match=rf"config.data.held_out={count}: .* of the 1437 that 'digits' trains on"):
        experiment.build(config)


@pytest.mark.parametrize("held_out", [0, 5000])
def test_he_et_al_s_cifar_run_has_64000_steps_on_both_splits(held_out):
    """Section 4.2: 64k steps of 128 images, and the rate falls at 32k and at 48k."""
    config = cifar10_resnet20.get_config()
    config.data.held_out = held_out
    if held_out:
        config.num_epochs, config.schedule.boundaries = cifar10_resnet20.EPOCHS_45K
    facts = experiment.data_facts(config)
    assert (facts.num_train, facts.num_test) == (50_000 - held_out, held_out or 10_000)
    designed = experiment.design(config, facts)
    assert designed.num_steps == 64_000
    rates = [float(designed.schedule(step)) for step in (0, 31_999, 32_000, 47_999, 48_000, 63_999)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
