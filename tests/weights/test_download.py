"""Downloads through the real client, from a server of the test's own: whole and checked, or one clear error."""

import contextlib
import hashlib
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest
from huggingface_hub import constants

from loopback import COMMIT, Server, use_as_hub
from paths import ROOT
from resnet_jax.weights.published import download

LARGE = np.random.default_rng(0).bytes(31_000_000)
SMALL = LARGE[:200_000]
REPO, FILE = "somebody/net", "model.safetensors"


@pytest.fixture
def server():
    server = Server()
    server.repos[REPO] = {FILE: SMALL, "config.json": b"{}"}
    server.files |= {"net.pth": SMALL, f"net-{hashlib.sha256(SMALL).hexdigest()[:8]}.pth": SMALL}
    yield server
    server.close()


@pytest.fixture
def cache(tmp_path, server, monkeypatch):
    """The client's settings, as its environment variables make them when it is imported."""
    use_as_hub(server, tmp_path, monkeypatch)
    return tmp_path


WAYS = {"hub": lambda server: download.from_hub(REPO, FILE), "url": lambda server: download.from_url(url(server))}
both = pytest.mark.parametrize("get", WAYS.values(), ids=WAYS)


def url(server, hashed=True):
    return f"{server.url}/files/" + next(name for name in server.files if ("-" in name) == hashed)


def files(folder):
    """Whole or partial content below a folder."""
    return [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 1000]


def offline(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@both
def test_a_file_comes_whole_and_a_second_time_without_a_request(get, server, cache, monkeypatch):
    path = get(server)
    assert path.read_bytes() == SMALL
    assert path.name == FILE or path.suffix == ".pth"
    assert server.bodies() == [None]
    asked = len(server.requests)
    assert get(server) == path
    offline(monkeypatch)
    assert get(server) == path
    assert len(server.requests) == asked


@both
def test_offline_without_the_file_is_an_error_without_a_request(get, server, cache, monkeypatch):
    offline(monkeypatch)
    with pytest.raises(download.DownloadError, match=r"not in the cache .* HF_HUB_OFFLINE"):
        get(server)
    assert not server.requests


@both
def test_a_dropped_connection_is_resumed(get, server, cache):
    server.repos[REPO][FILE] = LARGE
    server.files = {f"net-{hashlib.sha256(LARGE).hexdigest()[:8]}.pth": LARGE}
    server.drop_after = 25_000_000
    assert get(server).read_bytes() == LARGE
    assert server.bodies() == [None, f"bytes={20 << 20}-"]  # the client writes pieces of 10 MiB
    assert not [path for path in files(cache) if "partial" in path.name or "incomplete" in path.name]


@both
def test_a_connection_that_is_reset_is_tried_again(get, server, cache):
    """The client passes this failure on: what it had of the Hub's file is lost, of a URL's it is kept."""
    server.repos[REPO][FILE] = LARGE
    server.files = {f"net-{hashlib.sha256(LARGE).hexdigest()[:8]}.pth": LARGE}
    server.drop_after, server.reset = 25_000_000, True
    assert get(server).read_bytes() == LARGE
    first, again = server.bodies()
    assert first is None
    assert again is None if get is WAYS["hub"] else again.startswith("bytes=")


@both
def test_a_corrupted_body_of_the_right_length_is_refused_and_removed(get, server, cache):
    server.corrupt = True
    with pytest.raises(download.DownloadError, match="damaged: its hash is"):
        get(server)
    assert not files(cache)
    server.corrupt = False
    assert get(server).read_bytes() == SMALL


@both
def test_a_file_that_was_damaged_in_the_cache_is_refused_and_removed(get, server, cache):
    path = get(server)
    path.write_bytes(SMALL[:-1] + b"?")
    with pytest.raises(download.DownloadError, match="damaged"):
        get(server)
    assert not files(cache)
    assert get(server).read_bytes() == SMALL


@both
def test_a_full_disk_is_one_error_and_leaves_nothing(get, server, cache):
    server.repos[REPO][FILE] = server.files[url(server).rpartition("/")[2]] = LARGE
    with small_disk(cache / "hub"), small_disk(cache / "assets"):
        with (
            pytest.warns(UserWarning, match="Not enough free disk space") if get is WAYS["hub"] else nothing(),
            pytest.raises(download.DownloadError, match="is full"),
        ):
            get(server)
        assert not files(cache)


def test_a_full_disk_that_is_met_on_the_way_is_the_same(server, cache):
    server.heads = False  # so that the size is not known before
    server.files = {"net.pth": LARGE}
    with small_disk(cache / "assets"):
        with pytest.raises(download.DownloadError, match="is full"):
            download.from_url(f"{server.url}/net.pth")
        assert not files(cache)


nothing = contextlib.nullcontext


@contextlib.contextmanager
def small_disk(folder):
    """One of 1 MiB; only root can make it."""
    folder.mkdir(parents=True, exist_ok=True)
    if not sys.platform.startswith("linux") or os.geteuid():
        pytest.skip("only root can mount a small disk")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@both
def test_an_unwritable_cache_is_one_error(get, server, cache):
    for name in ("hub", "assets"):
        (cache / name).write_text("a file where the folder should be")
    with pytest.raises(download.DownloadError, match=r"cannot write to .*HF_HOME"):
        get(server)


@both
def test_no_connection_is_one_error(get, server, cache, monkeypatch):
    server.close()
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the client tries again for 20 s
    with pytest.raises(download.DownloadError, match="check the connection"):
        get(server)


@pytest.mark.parametrize(
    ("get", "said"),
    [
        (lambda server: download.from_hub("somebody/nat", FILE), r"model.safetensors of somebody/nat: .*404: check"),
        (lambda server: download.from_hub(REPO, "model.bin"), "has no such file"),
        (lambda server: download.from_hub("a/b/c", FILE), "Repo id must be in the form"),
        (lambda server: download.from_url(f"{server.url}/none.pth"), r"none.pth: .*404: check the spelling"),
    ],
)
def test_what_is_not_there_is_named(get, said, server, cache):
    with pytest.raises(download.DownloadError, match=said):
        get(server)
    assert not files(cache)


# The Hub alone ------------------------------------------------------------------------------------------


def test_small_files_are_checked_by_gits_hash(server, cache):
    assert download.from_hub(REPO, "config.json").read_bytes() == b"{}"
    server.repos[REPO]["other.json"] = b"[]"
    server.corrupt = True
    with pytest.raises(download.DownloadError, match="damaged"):
        download.from_hub(REPO, "other.json")


def test_a_revision_is_another_place_in_the_cache(server, cache):
    path = download.from_hub(REPO, FILE, COMMIT)
    asked = len(server.requests)
    assert download.from_hub(REPO, FILE, COMMIT) == path
    assert len(server.requests) == asked


def test_a_cache_without_links_is_checked_too(server, cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True)
    path = download.from_hub(REPO, FILE)
    assert not path.is_symlink()
    path.unlink()
    server.corrupt = True
    with pytest.raises(download.DownloadError, match="damaged"):
        download.from_hub(REPO, FILE)
    assert not files(cache)


# URLs alone ---------------------------------------------------------------------------------------------


def test_a_stopped_download_goes_on_in_the_next_call(server, cache, monkeypatch):
    server.files = {"net.pth": LARGE}
    address = f"{server.url}/net.pth"
    partial = stop_in_between(server, address, monkeypatch)
    assert partial.stat().st_size == 20 << 20
    assert download.from_url(address).read_bytes() == LARGE
    assert server.bodies()[-1] == f"bytes={20 << 20}-"
    assert not list(partial.parent.glob(".*.partial"))


def test_a_stopped_download_of_a_file_that_has_changed_starts_anew(server, cache, monkeypatch):
    server.files = {"net.pth": LARGE}
    address = f"{server.url}/net.pth"
    partial = stop_in_between(server, address, monkeypatch)
    server.files["net.pth"] = changed = LARGE[::-1]
    assert download.from_url(address).read_bytes() == changed
    assert server.bodies()[-1] is None
    assert not list(partial.parent.glob(".*.partial"))


def stop_in_between(server, address, monkeypatch):
    """Ctrl-C while the client waits to try again."""

    def stop(seconds):
        raise KeyboardInterrupt

    server.drop_after = 25_000_000
    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", stop)
        with pytest.raises(KeyboardInterrupt):
            download.from_url(address)
    (partial,) = pathlib.Path(constants.HF_ASSETS_CACHE).rglob("*.partial")
    return partial


def test_a_server_without_ranges_and_heads_still_gives_the_file(server, cache):
    server.ranges = server.heads = False
    server.files = {"net.pth": LARGE}
    server.drop_after = 25_000_000
    assert download.from_url(f"{server.url}/net.pth").read_bytes() == LARGE


def test_a_file_of_unknown_length_is_not_resumed(server, cache):
    """Nothing would show that a server sent all of it again, where a part was asked for."""
    server.heads = False
    server.files = {"net.pth": LARGE}
    server.drop_after, server.reset = 25_000_000, True
    assert download.from_url(f"{server.url}/net.pth").read_bytes() == LARGE
    assert server.bodies() == [None, None]


def test_a_hash_may_be_given(server, cache):
    whole = hashlib.sha256(SMALL).hexdigest()
    assert download.from_url(url(server, hashed=False), whole).read_bytes() == SMALL
    server.files["other.pth"] = SMALL
    with pytest.raises(download.DownloadError, match="damaged"):
        download.from_url(f"{server.url}/other.pth", "00" + whole[2:])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\n <!DOCTYPE html><html>Sign in</html>", "sent a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "sent a Git LFS pointer"),
        (b"", "sent nothing"),
    ],
)
def test_a_page_in_place_of_weights_is_refused_and_not_kept(content, said, server, cache):
    server.files = {"net.pth": content}
    with pytest.raises(download.DownloadError, match=said):
        download.from_url(f"{server.url}/net.pth")
    server.files = {"net.pth": SMALL}
    assert download.from_url(f"{server.url}/net.pth").read_bytes() == SMALL


def test_a_name_that_is_none_of_weights_is_refused_before_a_request(server, cache):
    with pytest.raises(ValueError, match="must end in one of"):
        download.from_url(f"{server.url}/net.zip")
    assert not server.requests
    assert download.from_url(f"{server.url}/net.pth?download=true").name == "net.pth"


# Two processes, and the environment ---------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("way", ["hub", "url"])
def test_two_processes_at_once_get_one_whole_file_and_show_progress(way, server, tmp_path):
    server.repos[REPO][FILE] = LARGE
    server.files = {"net.pth": LARGE}
    server.bytes_per_second = 15_000_000  # two seconds: both are there before the first is done
    call = f"from_hub({REPO!r}, {FILE!r})" if way == "hub" else f"from_url('{server.url}/net.pth')"
    code = f"from resnet_jax.weights.published import download; print(download.{call})"
    settings = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "TQDM_POSITION": "-1"}
    start = {"cwd": ROOT, "env": os.environ | settings, "text": True, "stdout": subprocess.PIPE}
    runs = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, **start) for _ in range(2)]
    outputs = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    (path,) = {pathlib.Path(out.strip()) for out, _ in outputs}
    assert path.is_relative_to(tmp_path)
    assert path.read_bytes() == LARGE
    assert server.bodies() == [None]  # one download, and the other waited
    assert "100%" in "".join(err for _, err in outputs)
