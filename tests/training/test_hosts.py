"""One device, four devices, two hosts with two each: the same run; and what the hosts of a run tell each other."""

import concurrent.futures
import itertools
import os
import signal
import textwrap
import threading
import time

import jax
import numpy as np
import pytest
from jax._src import clusters
from PIL import Image

import launching
from resnet_jax.runs import history, reporting, workdirs
from resnet_jax.step import parallel
from resnet_jax.training import config_file, experiment, hosts, loop
from resnet_jax.weights.files import orbax_folder
from tiny import narrow, tiny_config

TRAIN_IMAGES, TEST_IMAGES = 50, 37


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A folder of JPEGs of uneven sizes, in two classes."""
    folder, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for split, count in (("train", TRAIN_IMAGES), ("test", TEST_IMAGES)):
        for index in range(count):
            path = folder / split / f"class{index % 2}" / f"{index:02}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
            coarse.resize((40 + index % 7, 36 + index % 5)).save(path, quality=90)
    return folder


@pytest.fixture(scope="module")
def config(photographs, tmp_path_factory):
    """The ImageNet config, shrunk, in float64: 9 steps of 16 images with its augmentation."""
    path = tmp_path_factory.mktemp("config") / "shrunk.py"
    path.write_text(
        textwrap.dedent(f"""
        from resnet_jax.configs import imagenet_resnet50

        def get_config():
            config = imagenet_resnet50.get_config()
            config.batch_size, config.num_epochs, config.schedule.warmup_epochs = 16, 3.0, 1.0
            config.schedule.boundaries = (2.0,)
            config.optimizer.learning_rate = 0.05
            config.batch_norm_devices = 0
            config.model.kwargs.update({{"stage_sizes": (1,), "stage_features": (8,), "stem_features": 8}})
            config.model.kwargs.dtype = config.model.kwargs.param_dtype = "float64"
            config.data.name, config.data.path = "folder", {str(photographs)!r}
            config.data.image_size, config.data.eval_resize = 24, 28
            config.data.num_threads, config.log_every_steps = 2, 1
            return config
        """)
    )
    return path


def largest_difference(left, right):
    differences = jax.tree.map(lambda a, b: np.max(np.abs(a - b)), left, right)
    return max(jax.tree.leaves(differences))


def slurm_tasks(config, workdir, **environment):
    """Two on one node, by the variables that srun sets for them; JAX reads these, and nothing need be said."""
    node = {
        "SLURM_JOB_ID": str(launching.free_port()), "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_NODES": "1",
        "SLURM_NTASKS": "2",
    }  # fmt: skip
    running = []
    for index in range(2):
        task = {"SLURM_PROCID": str(index), "SLURM_LOCALID": str(index)}
        running += launching.start(config, workdir, devices=2, **node, **task, **environment)
    return running


LAYOUTS = {"one": (1, "auto"), "four": (4, "auto"), "four, jit": (4, "jit")}  # devices, and `config.parallel`


@pytest.mark.slow
@pytest.mark.parametrize("alone", [("one",), pytest.param(tuple(LAYOUTS), marks=pytest.mark.soak)], ids=["one", "all"])
def test_one_device_four_devices_and_two_hosts_train_the_same_net(config, tmp_path, monkeypatch, x64, alone):
    """Hosts, which are tasks of Slurm, run under `jit`, the first two layouts under `pmap`."""
    for name in alone:
        count, mode = LAYOUTS[name]
        with monkeypatch.context() as patch:
            narrow(patch, count)
            loop.train(config_file.load(str(config), [f"--config.parallel={mode}"]), str(tmp_path / name))
    outputs = launching.finish(running := slurm_tasks(config, tmp_path / "hosts", JAX_ENABLE_X64="1"))
    assert [process.returncode for process in running] == [0, 0], "\n".join(outputs)
    assert "process 0 of 2" in outputs[0]
    layouts = (*alone, "hosts")
    variables = {name: orbax_folder.load_variables(str(tmp_path / name)) for name in layouts}
    assert jax.tree.leaves(variables["one"])[0].dtype == np.float64
    records = {name: history.test_records(history.read_metrics(str(tmp_path / name))) for name in layouts}
    for name in layouts:
        assert largest_difference(variables["one"], variables[name]) < 1e-9, name
        assert [record["count"] for record in records[name]] == [TEST_IMAGES] * 3
        assert [record["correct"] for record in records[name]] == [record["correct"] for record in records["one"]]
    (entry,) = workdirs.load_starts(str(tmp_path / "hosts"))
    assert entry["processes"]["devices_of_each"] == [2, 2]


def small(folder, *lines):
    """A config of 16 quick steps on made-up images of 8 pixels; each a while later where SLOW says so, in seconds."""
    path = folder / "small.py"
    path.write_text(
        f"{LATE}\n"
        "def get_config():\n"
        "    make_late()\n"
        "    config = default.get_config()\n"
        "    config.batch_size, config.num_epochs, config.log_every_steps = 8, 2.0, 1\n"
        "    config.model.kwargs.update({'stage_sizes': (1,), 'stage_features': (8,), 'stem_features': 8})\n"
        "    config.data.name, config.data.num_examples, config.data.num_threads = 'synthetic', 64, 1\n"
        "    config.data.mean = config.data.std = (0.5, 0.5, 0.5)\n"
        + "".join(f"    {line}\n" for line in lines)
        + "    return config\n"
    )
    return path


LATE = """
import os, time
from resnet_jax.configs import default

def make_late():
    late, slow = (float(os.environ.get(name, "0")) for name in ("LATE", "SLOW"))
    if not late + slow:
        return
    from resnet_jax.training import experiment

    def slowly(*args, original=experiment.train_batches):
        time.sleep(late)
        for batch in original(*args):
            yield batch
            time.sleep(slow)

    experiment.train_batches = slowly
"""


def wait_for(condition, processes, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert all(process.poll() is None for process in processes), launching.finish(processes)
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)


def steps_of(workdir):
    return len(history.read_metrics(str(workdir)))


LONG = (
    "config.batch_norm_devices, config.num_epochs = 0, 20.0",
    "config.eval_every_epochs = 10.0",
)


@pytest.mark.slow
def test_sigterm_to_one_host_saves_on_all_and_any_number_of_hosts_goes_on(tmp_path, monkeypatch):
    """One host is told to make way, two go on and are told, one finishes. The news takes a while to go round."""
    path, workdir = small(tmp_path, *LONG), str(tmp_path / "run")
    config, train = config_file.load(str(path)), reporting.Reporter.train

    def told(self, step, numbers):
        train(self, step, numbers)
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    narrow(monkeypatch, 2)
    with monkeypatch.context() as patch:
        patch.setattr(reporting.Reporter, "train", told)
        with pytest.raises(loop.Preempted, match="saved step 7 of 160"):
            loop.train(config, workdir)
    running = launching.start(path, workdir, processes=2, SLOW="0.15")
    wait_for(lambda: steps_of(workdir) > 10, running)
    running[-1].terminate()
    outputs = launching.finish(running)
    assert [process.returncode for process in running] == [75] * 2, outputs
    assert "told to stop (SIGTERM): saved step" in outputs[0]
    loop.train(config, workdir)
    starts = workdirs.load_starts(workdir)
    assert [entry["processes"]["count"] for entry in starts] == [1, 2, 1]
    assert 7 == starts[1]["first_step"] < starts[2]["first_step"] < 160
    records = history.read_metrics(workdir)
    assert [record["step"] for record in history.test_records(records)] == [80, 160]
    assert [record["step"] for record in records if record["split"] == "train"] == list(range(1, 161))


@pytest.mark.slow
def test_when_a_host_is_lost_the_others_stop_within_the_stated_time(tmp_path):
    config = small(tmp_path, *LONG, "config.checkpoint_every_steps = 4")
    running = launching.start(config, tmp_path / "run", "--heartbeat=10", processes=2, SLOW="0.15")
    wait_for(lambda: steps_of(tmp_path / "run") > 6, running)
    running[1].kill()
    lost = time.monotonic()
    launching.finish(running, timeout=60)
    assert time.monotonic() - lost < 10 + 15  # the heartbeat, and a busy machine's time to end
    assert running[0].returncode not in (0, 75)
    assert orbax_folder.load_variables(str(tmp_path / "run"))["params"]


@pytest.mark.slow
@pytest.mark.soak
def test_hosts_that_disagree_all_say_in_what(tmp_path):
    config, address = small(tmp_path), f"--coordinator=127.0.0.1:{launching.free_port()}"
    running = []
    for index, own in enumerate(["--config.batch_size=8", "--config.batch_size=16"]):
        running += launching.start(config, tmp_path / "run", address, "--num_processes=2", f"--process_id={index}", own)
    for process, output in zip(running, launching.finish(running), strict=True):
        assert process.returncode == 1
        assert "config.batch_size: 8 in process 0, 16 in 1" in output
        assert "Start all of them with the same command" in output
    assert not (tmp_path / "run").exists()


class Store:
    """The coordination service for as many threads, each a process; one that asks for what never comes gives up."""

    def __init__(self, size):
        self._texts, self._changed, self._barrier = {}, threading.Condition(), threading.Barrier(size)

    def key_value_set(self, key, text):
        with self._changed:
            self._texts[key] = text
            self._changed.notify_all()

    def blocking_key_value_get(self, key, milliseconds):
        with self._changed:
            if not self._changed.wait_for(lambda: key in self._texts, milliseconds / 1000):
                raise jax.errors.JaxRuntimeError(f"DEADLINE_EXCEEDED: GetKeyValue() timed out with key: {key}")
            return self._texts[key]

    def key_value_dir_get(self, folder):
        with self._changed:
            return [(key, text) for key, text in self._texts.items() if key.startswith(folder)]

    def wait_at_barrier(self, key, milliseconds):
        self._barrier.wait(milliseconds / 1000)


@pytest.fixture
def agree_on(monkeypatch):
    """`agree` of so many processes, of which None never comes: what each of them raises, or gives."""
    own = threading.local()

    def agree(*facts, what=lambda own: hosts.agree(own, "Mend it.")):
        store, turns = Store(len(facts)), itertools.repeat(0)
        monkeypatch.setattr(jax, "process_count", lambda: len(facts))
        monkeypatch.setattr(jax, "process_index", lambda: own.index)
        monkeypatch.setattr(hosts.multihost, "get_jax_distributed_client", lambda: store)
        monkeypatch.setattr(hosts, "_TURNS", turns)

        def process(index):
            own.index = index
            try:
                return what(facts[index])
            except Exception as error:
                return error

        with concurrent.futures.ThreadPoolExecutor(len(facts)) as pool:
            running = [pool.submit(process, index) for index, own_facts in enumerate(facts) if own_facts is not None]
            return [future.result() for future in running]

    return agree


def test_all_hosts_learn_of_each_difference(agree_on):
    assert agree_on({"a": 1}, {"a": 1}, {"a": 1}) == [None] * 3
    errors = agree_on({"a": 1, "b": [2]}, {"a": 1, "b": [2]}, {"a": 3, "c": "x"})
    assert {type(error) for error in errors} == {hosts.HostsDisagree}
    (message,) = {str(error) for error in errors}
    for line in ("a: 1 in process 0, 3 in 2", "b: [2] in process 0, None in 2", "c: None in process 0, 'x' in 2"):
        assert line in message
    assert message.endswith("Mend it.")


def test_what_one_host_says_all_take(agree_on):
    assert hosts.of_first({"alone": True}) == {"alone": True}
    assert agree_on([1, 0.1], [2], "x", what=hosts.of_first) == [[1, 0.1]] * 3


def test_hosts_that_disagree_end_before_anything_is_written(tmp_path, monkeypatch):
    def refuse(facts, remedy):
        assert facts["config.batch_size"] == 8
        raise hosts.HostsDisagree(remedy)

    monkeypatch.setattr(hosts, "agree", refuse)
    with pytest.raises(hosts.HostsDisagree, match="Start all of them with the same command"):
        loop.train(tiny_config(), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_host_that_does_not_come_is_missed(agree_on, monkeypatch):
    monkeypatch.setattr(hosts, "PATIENCE", 0.05)
    for error in agree_on({"a": 1}, {"a": 1}, None):
        assert isinstance(error, hosts.HostMissing)
        assert "has not come to this point within 0.05 s" in str(error)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ((1, 1, None), ["process 0 waits for process 2", "process 1 waits for process 2"]),
        ((None, 1, 1), ["process 1 waits for process 0", "process 2 waits for process 0"]),
    ],
)
def test_a_wait_is_said_with_who_is_missing_and_ends_in_time(agree_on, monkeypatch, caplog, facts, said):
    monkeypatch.setattr(hosts, "PATIENCE", 0.6)
    monkeypatch.setattr(hosts, "QUIET", 0.1)
    start = time.monotonic()
    assert {type(error) for error in agree_on(*facts)} == {hosts.HostMissing}
    assert time.monotonic() - start < 2 * 0.6
    assert sorted(record.message for record in caplog.records) == [f"{line}, for up to 0.6 s" for line in said]


def test_a_process_that_is_left_alone_at_the_start_says_so(monkeypatch, caplog):
    def wait(*_, initialization_timeout, **__):
        assert initialization_timeout == hosts.PATIENCE
        time.sleep(0.2)
        raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: Barrier timed out")

    monkeypatch.setattr(hosts, "QUIET", 0.05)
    monkeypatch.setattr(jax.distributed, "initialize", wait)
    with pytest.raises(hosts.HostMissing, match=r"not all of them have within 600 s.*Barrier timed out"):
        hosts.join("a:1", 2, 1)
    assert "process 1 of 2 waits for all to come to a:1, for up to 600 s" in caplog.text


def test_connections_are_made_before_the_first_step(monkeypatch):
    """Between all devices, and within the groups that share batch norm; what is computed with them is thrown away."""
    made = []
    monkeypatch.setattr(loop, "connect", lambda groups: made.append(groups) or parallel.connect(groups))
    monkeypatch.setattr(hosts, "agree", lambda facts, remedy: None)
    run = experiment.build(tiny_config(batch_norm_devices=2, parallel="jit"))
    loop.check_hosts(run)
    assert made == []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    loop.check_hosts(run)
    assert made == [((0, 1), (2, 3))]


@pytest.mark.slow
@pytest.mark.soak
def test_hosts_wait_for_one_that_is_half_a_minute_later(tmp_path):
    """Right before the first step; gloo, left alone, gives up after 30 s."""
    config, running = small(tmp_path), []
    address = f"--coordinator=127.0.0.1:{launching.free_port()}"
    for index, seconds in enumerate(("0", "33")):
        own = [address, "--num_processes=2", f"--process_id={index}"]
        running += launching.start(config, tmp_path / "run", *own, devices=2, LATE=seconds)
    outputs = launching.finish(running)
    assert [process.returncode for process in running] == [0, 0], "\n".join(outputs)


def test_pmap_on_several_hosts_is_refused_in_one_sentence(monkeypatch):
    class Device:
        def __init__(self, index):
            self.id, self.process_index, self.platform = index, index // 2, "tpu"

    with pytest.raises(ValueError, match="'pmap' leaves each of 2 hosts with a state of its own.*use 'jit'"):
        parallel.parallelize(lambda: 0, lambda: 0, mode="pmap", devices=[Device(i) for i in range(4)])


NO_CLUSTER = ValueError("coordinator_address should be defined.")  # what JAX says where it recognises none


def raise_no_cluster(**_):
    raise NO_CLUSTER


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        ({"coordinator": "a:1"}, {}, "give --num_processes, --process_id too"),
        ({"num_processes": 2, "process_id": 0}, {}, "give --coordinator too"),
        ({}, {"JOB_COMPLETION_INDEX": "3"}, r"one pod of a Kubernetes job.*install \"jax\[k8s\]\""),
        (
            {},
            {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1"},
            r"OMPI_COMM_WORLD_SIZE=4: Open MPI has started 4 processes, of which this is number 1.*give --coordinator",
        ),
        ({}, {"PMI_SIZE": "2", "PMI_RANK": "0"}, r"PMI_SIZE=2: .* give --coordinator=HOST:PORT"),
        ({}, {"WORLD_SIZE": "2", "RANK": "0"}, r"WORLD_SIZE=2: torchrun has started 2"),
    ],
    ids=["only the address", "no address", "a pod without the package", "Open MPI 5", "MPICH", "torchrun"],
)
def test_half_an_address_is_refused(monkeypatch, arguments, environment, said):
    monkeypatch.setattr(jax.distributed, "initialize", raise_no_cluster)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=said):
        hosts.join(**arguments)


OPEN_MPI = {f"OMPI_COMM_WORLD_{name}": text for name, text in (("SIZE", "4"), ("RANK", "3"), ("LOCAL_RANK", "1"))}
SLURM = {
    "SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "node1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
    "SLURM_STEP_NUM_NODES": "2",
}  # fmt: skip


@pytest.mark.parametrize(
    ("coordinator", "environment", "place", "devices"),
    [
        ("a:1", OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, ("a:1", 4, 3), [1]),
        ("a:1", OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, ("a:1", 4, 3), None),
        ("", OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": "8192.0;tcp://10.0.0.1:1"}, None, [1]),
        ("", OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://a:1", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, None, None),
        ("", SLURM | {"SLURM_NTASKS": "2"}, None, None),  # a task a node
        ("", SLURM | {"SLURM_NTASKS": "16"}, None, [0]),
        ("", SLURM | {"SLURM_NTASKS": "16", "SLURM_GPUS_PER_TASK": "2"}, None, None),
    ],
)
def test_a_process_takes_the_devices_that_are_its_own(monkeypatch, coordinator, environment, place, devices):
    """All that it sees, None, where it shares its node with no other: by JAX's own reading of what we give it."""
    given = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *place, **options: given.append((place, options)))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    hosts.join(coordinator)
    ((address, options),) = given
    ids = options.get("local_device_ids")
    if place is None:
        ids = clusters.ClusterEnv.auto_detect_unset_distributed_params(None, None, None, ids, None, 1)[3]
    assert (place or ()) == address
    assert (ids or None) == devices


def test_a_process_alone_is_alone(monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", raise_no_cluster)
    hosts.join()
    assert not jax.distributed.is_initialized()
    assert hosts.is_first()
    hosts.agree({"anything": 1}, "")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")  # a notebook in a pod
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: pytest.fail("asked for a job"))
    hosts.join()
