"""The order of examples: each once in a pass, and one pass tells nothing of the next."""

import collections
import itertools
import math

import numpy as np
import pytest
from grain.experimental import index_shuffle

from resnet_jax.data import order

# examples, batch size, batches that are looked at of each pass (None: all)
SIZES = {
    "digits": (1797, 64, None),
    "cifar": (50_000, 128, None),
    "a power of two": (65_536, 64, None),
    "imagenet": (1_281_167, 1024, 40),
}
PASSES, SEED = 4, 5


@pytest.mark.parametrize("length", [1, 2, 3, 7, 1797, 65_536, 65_537, 65_538])
def test_a_pass_has_every_example_once(length):
    """Grain's `index_shuffle` takes 16 bits of the numbers of 65,537 examples, and leaves one out."""
    shuffled = order.Shuffled(length, 3)
    for first in (0, 10**12 // length * length):
        assert collections.Counter(shuffled[first + i] for i in range(length)) == dict.fromkeys(range(length), 1)
        if length > 10_000:
            break


def passes_of(shuffled, length, batch, batches):
    """[PASSES, batches, batch]: the examples of the first batches of each pass."""
    batches = length // batch if batches is None else batches
    places = range(batches * batch)
    drawn = [[shuffled[number * length + place] for place in places] for number in range(PASSES)]
    return np.array(drawn).reshape(PASSES, batches, batch)


def together_again(one, other, length):
    """Pairs of examples that share a row of both arrays `[rows, size]`, and how many do by chance."""
    _, here, there = np.intersect1d(one, other, assume_unique=True, return_indices=True)
    size = one.shape[1]
    shared = np.unique((here // size) * len(other) + there // size, return_counts=True)[1]
    by_chance = len(one) * len(other) * math.comb(size, 2) ** 2 / math.comb(length, 2)
    return np.sum(shared * (shared - 1) // 2), by_chance


def deviations(drawn, length):
    """How far statistics of the passes are from those of independent permutations, in standard deviations."""
    passes, batches, size = drawn.shape
    numbers = {}
    for name, width in (("the same batch", size), ("the same pair", 2)):
        counted = [
            together_again(one.reshape(-1, width), other.reshape(-1, width), length)
            for one, other in itertools.pairwise(drawn)
        ]
        found, by_chance = np.sum(counted, axis=0)
        if by_chance > 0.1:  # of a few batches alone no pair comes again
            numbers[name] = (found - by_chance) / math.sqrt(by_chance)
    flat = drawn.reshape(passes, -1)
    correlated = {
        "place and example": [(np.arange(flat.shape[1]), one) for one in flat],
        "one place and the next": [(one[:-1], one[1:]) for one in flat],
        "a place in both passes": list(itertools.pairwise(flat)),
        # Of a few batches, those that are in both passes.
        "an example in both passes": [
            np.intersect1d(one, other, return_indices=True)[1:] for one, other in itertools.pairwise(flat)
        ],
    }
    for name, pairs in correlated.items():
        numbers[name] = max((np.corrcoef(x, y)[0, 1] * math.sqrt(len(x)) for x, y in pairs), key=abs)
    # Ten classes, one after the other in the data: are they in a batch as often as by chance, no more evenly either?
    counts = np.stack([np.sum(drawn * 10 // length == label, axis=-1) for label in range(10)])
    expected = np.bincount(np.arange(length) * 10 // length)[:, None, None] * size / length
    spread = np.sum((counts - expected) ** 2 / expected) * (length - 1) / (length - size)
    freedom = 9 * passes * batches
    numbers["classes in a batch"] = (spread - freedom) / math.sqrt(2 * freedom)
    return numbers


@pytest.mark.parametrize("size", SIZES)
def test_a_pass_tells_nothing_of_the_next(size):
    length, batch, batches = SIZES[size]
    numbers = deviations(passes_of(order.Shuffled(length, SEED), length, batch, batches), length)
    assert all(abs(number) < 5 for number in numbers.values()), numbers


class FourRounds:
    """The order that this library had in 0.1, and Grain's `shuffle` has."""

    def __init__(self, length):
        self.length = length

    def __getitem__(self, position):
        number, place = divmod(position, self.length)
        return index_shuffle(place, max_index=self.length - 1, seed=1234 + number, rounds=4)


@pytest.mark.parametrize("size", ["cifar", "a power of two", "imagenet"])
def test_the_statistics_see_what_is_wrong_with_four_rounds_of_grains(size):
    length, batch, batches = SIZES[size]
    numbers = deviations(passes_of(FourRounds(length), length, batch, batches), length)
    assert max(map(abs, numbers.values())) > 10, numbers


def test_an_order_keeps_little():
    """Positions are worked out one by one: of 100 million examples, 10,000 rows and as many columns are kept."""
    height, width, rounds = order._square(10**8, SEED, 0)
    assert (height, width) == (10_000, 10_000)
    assert sum(len(numbers) for both in rounds for numbers in both) == 80_000
    assert len({order.Shuffled(10**8, SEED)[position] for position in range(1000)}) == 1000


# Repeats


def pairs_of(batch):
    """How often each two examples are mixed: rows 0 and 1, 2 and 3, ..."""
    return collections.Counter(tuple(sorted(pair)) for pair in np.reshape(batch, (-1, 2)).tolist())


@pytest.mark.parametrize("batch_size", [128, 1020, 1024, 2048])
@pytest.mark.parametrize("repeats", [2, 3, 4])
def test_copies_mix_with_different_images(batch_size, repeats):
    layout = order.apart(batch_size, repeats)
    assert sorted(layout) == list(range(batch_size))
    for first in range(repeats):  # a batch may start in the middle of the copies of one
        batch = [(first + place) // repeats for place in layout]
        pairs = pairs_of(batch)
        assert max(pairs.values()) == 1
        assert not any(one == other for one, other in pairs)


@pytest.mark.parametrize(("devices", "repeats"), [(3, 3), (4, 3), (8, 3), (4, 4), (8, 4), (16, 4)])
def test_copies_go_to_different_devices(devices, repeats):
    layout = order.apart(48 * devices, repeats)
    for share in np.reshape(layout, (devices, -1)):
        assert len({place // repeats for place in share}) == len(share)


# How rows mix in timm (with the mirrored batch of a rank) and in torchvision (with the batch, rolled by one).
MIXING = {"timm": (3, lambda part: part[::-1]), "torchvision": (4, lambda part: [part[-1], *part[:-1]])}


@pytest.mark.slow  # timm takes seconds to import
@pytest.mark.parametrize("library", MIXING)
def test_other_libraries_mix_copies_of_two_images_several_times(library):
    """Why `order.apart` is none of theirs: both deal the copies to the ranks, one by one, by the same code."""
    samplers = pytest.importorskip("timm.data.distributed_sampler")
    repeats, partners = MIXING[library]
    ranks, share = 8, 128
    theirs = collections.Counter()
    for rank in range(ranks):
        sampler = samplers.RepeatAugSampler(range(6000), ranks, rank, shuffle=False, num_repeats=repeats)
        part = list(sampler)[:share]
        theirs.update({tuple(sorted(pair)) for pair in zip(part, partners(part), strict=True)})
    assert max(theirs.values()) == repeats
    assert max(pairs_of([place // repeats for place in order.apart(ranks * share, repeats)]).values()) == 1
