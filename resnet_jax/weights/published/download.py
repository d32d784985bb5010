"""Weight files from the Hugging Face Hub and from URLs: whole and checked, or not at all.

The work is done by `huggingface_hub`: its cache, its retries, its progress bar, its offline mode and its environment
variables (HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE). What it does not do is added: looking into the cache before it asks
the server, checking hashes, and going on with a URL's file after the process was stopped.
"""

import contextlib
import errno
import glob
import hashlib
import os
import pathlib
import re
import shutil
from collections.abc import Iterator, Mapping
from urllib.parse import unquote, urlsplit

from resnet_jax.errors import Refusal
from resnet_jax.version import __version__
from resnet_jax.weights.files.formats import TORCH_SUFFIXES

SUFFIXES = (*TORCH_SUFFIXES, ".safetensors")
# No compression: the length and the ranges of the file itself are wanted.
HEADERS = {"Accept-Encoding": "identity"}
# Of a download whose connection is reset, each of which got further than the one before.
TRIES = 10
# Beginnings of what is sometimes saved under the name of weights, and what it is.
NOT_WEIGHTS = {
    b"<": "a web page, perhaps an error message",
    b"version https://git-lfs": "a Git LFS pointer instead of the file that it stands for",
}
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


class DownloadError(Refusal, OSError):
    """A file that could not be had: not there, out of reach, or damaged on the way."""


class NoSuchFile(DownloadError):
    """The repository is there, and the file in it is not."""


def from_hub(repo: str, file: str, revision: str = "main") -> pathlib.Path:
    """A file of a repository on the Hugging Face Hub; what is in the cache is taken from there, without a request.

    Args:
      repo: such as "timm/resnet50.a1_in1k".
      file: its name in the repository.
      revision: branch, tag or commit.

    Returns:
      Its path in the cache; the content has the hash that the Hub gave for it.

    Raises:
      NoSuchFile: no such file in the repository.
      DownloadError: no such repository, no access, no connection, no space, an unwritable cache, a damaged file.
    """
    import huggingface_hub
    from huggingface_hub import constants

    what = f"{file} of {repo}" + (f" at {revision}" if revision != "main" else "")
    with _explained(what, constants.HF_HUB_CACHE):
        cached = huggingface_hub.try_to_load_from_cache(repo, file, revision=revision)
        fresh = not isinstance(cached, str)
        path = pathlib.Path(cached) if isinstance(cached, str) else _ask_hub(repo, file, revision)
        _check_blob(path, _hash_of_blob(path) or (_hash_on_hub(repo, file, revision) if fresh else ""), what)
    return path


def from_url(url: str, sha256: str | None = None) -> pathlib.Path:
    """A file of weights from any server, kept in the cache under its own name.

    A download that was interrupted is continued by the next call, where the server allows it and the file there is
    still the same. Of two processes that want one file, one downloads and the other waits.

    Args:
      url: http or https; the file's name must end as names of weights do.
      sha256: the hash of the file, or its first digits; by default what PyTorch's names end in (`-0676ba61.pth`).

    Returns:
      Its path; the content has that hash, where one is known.

    Raises:
      ValueError: the name does not end as one of weights.
      DownloadError: as for `from_hub`; and a web page in place of the file.
    """
    from huggingface_hub import constants, utils

    name = unquote(urlsplit(url).path).rpartition("/")[2]
    if not name.endswith(SUFFIXES):
        raise ValueError(f"{url}: the name of the file must end in one of {', '.join(SUFFIXES)}.")
    sha256 = sha256 or _hash_in_name(name)
    folder = pathlib.Path(constants.HF_ASSETS_CACHE, "resnet_jax", hashlib.sha256(url.encode()).hexdigest()[:16])
    path = folder / name
    with _explained(url, constants.HF_ASSETS_CACHE):
        if path.is_file():
            _check_sha256(path, sha256, url)
            return path
        folder.mkdir(parents=True, exist_ok=True)
        with utils.WeakFileLock(folder / ".lock"):
            if not path.is_file():  # another process may have been quicker
                _download(url, path, sha256)
    return path


def _ask_hub(repo: str, file: str, revision: str, tries: int = 3) -> pathlib.Path:
    """The client resumes after most failures; a connection that is reset it passes on, and has kept nothing."""
    from huggingface_hub import hf_hub_download

    try:
        return pathlib.Path(hf_hub_download(repo, file, revision=revision, user_agent=f"resnet_jax/{__version__}"))
    except (OSError, ValueError):  # a refusal, also of the server's, and of this disk
        raise
    except Exception:
        if tries == 1:
            raise
        return _ask_hub(repo, file, revision, tries - 1)


# From a URL ---------------------------------------------------------------------------------------------


def _download(url: str, path: pathlib.Path, sha256: str | None) -> None:
    """To a temporary name first; it becomes `path` when all is there and checked."""
    headers = _head(url)
    length = headers.get("content-length", "")
    size = int(length) if length.isdigit() else None
    version = sha256 or headers.get("etag") or headers.get("last-modified")
    digest = hashlib.sha256((version or "").encode()).hexdigest()[:8]
    partial = path.with_name(f".{path.name}.{digest}.partial")
    if not version or size is None or (partial.exists() and partial.stat().st_size > size):
        partial.unlink(missing_ok=True)  # nothing would tell that the rest does not fit to it
    _check_space(path.parent, size, partial)
    try:
        _continue(url, partial, size)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            partial.unlink(missing_ok=True)
        raise
    _check_sha256(partial, sha256, url)
    _check_beginning(partial, url)
    with partial.open("rb") as written:
        os.fsync(written.fileno())
    partial.replace(path)
    for left_over in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        left_over.unlink()


def _head(url: str) -> Mapping[str, str]:
    """What the server says of the file; nothing, if it does not say."""
    from huggingface_hub.utils import get_session

    response = get_session().head(url, headers=HEADERS, follow_redirects=True, timeout=10)
    return response.headers if response.status_code == 200 else {}


def _continue(url: str, partial: pathlib.Path, size: int | None) -> None:
    """Adds the rest. The library retries most failures; one that it passes on is retried as long as bytes come."""
    from huggingface_hub.file_download import http_get

    for left in reversed(range(TRIES)):
        with partial.open("ab") as file:
            before = file.tell()
            try:
                http_get(url, file, resume_size=before, headers=dict(HEADERS), expected_size=size)
                return
            except OSError:  # the server's refusals are OSErrors too
                raise
            except Exception:
                if file.tell() == before or not left:
                    raise
                if size is None:  # from the start: a server may send all of it again, and no length would tell
                    file.truncate(0)


def _check_space(folder: pathlib.Path, size: int | None, partial: pathlib.Path) -> None:
    missing = (size or 0) - (partial.stat().st_size if partial.exists() else 0)
    if missing > shutil.disk_usage(folder).free:
        raise OSError(errno.ENOSPC, f"{missing} bytes are still to come")


# Checks -------------------------------------------------------------------------------------------------


def _hash_in_name(name: str) -> str | None:
    """The digits that PyTorch's hub puts before the suffix."""
    found = re.search(r"-([0-9a-f]{8,64})\.[a-z.]+$", name)
    return found and found[1]


def _hash_of_blob(path: pathlib.Path) -> str:
    """The cache's name for the content, which is the Hub's hash of it; "" where the cache has no links."""
    # One step alone: a blob may itself be a link, into a store that is ordered by another hash.
    return os.path.basename(os.readlink(path)) if path.is_symlink() else ""


def _hash_on_hub(repo: str, file: str, revision: str) -> str:
    import huggingface_hub

    return huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(repo, file, revision=revision)).etag or ""


def _check_blob(path: pathlib.Path, expected: str, what: str) -> None:
    """The client takes any body of the right length; the Hub's hash tells. SHA-256 of large files, Git's of others."""
    if re.fullmatch(r"[0-9a-f]{64}", expected):
        _check_sha256(path, expected, what)
    elif re.fullmatch(r"[0-9a-f]{40}", expected):
        data = path.read_bytes()
        _compare(path, hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(), expected, what)


def _check_sha256(path: pathlib.Path, expected: str | None, what: str) -> None:
    if expected:
        with path.open("rb") as file:
            _compare(path, hashlib.file_digest(file, "sha256").hexdigest(), expected.lower(), what)


def _compare(path: pathlib.Path, found: str, expected: str, what: str) -> None:
    if not found.startswith(expected):
        _remove(path)
        raise DownloadError(
            f"{what}: damaged: its hash is {found[: len(expected)]} and should be {expected}. It was removed; run "
            "again to download it anew, and if that does not help, the server has another file under this name."
        )


def _check_beginning(path: pathlib.Path, what: str) -> None:
    with path.open("rb") as file:
        head = file.read(64).lstrip()
    kind = next((kind for begins, kind in NOT_WEIGHTS.items() if head.startswith(begins)), None)
    if kind or not head:
        _remove(path)
        raise DownloadError(f"{what}: the server sent {kind or 'nothing'}: open the address in a browser to see it.")


def _remove(path: pathlib.Path) -> None:
    with contextlib.suppress(OSError):  # of a cache that may only be read
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)


# Errors -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _explained(what: str, folder: str) -> Iterator[None]:
    """Whatever goes wrong becomes a `DownloadError`. The network's errors are those of a library that may change."""
    from huggingface_hub import errors

    try:
        yield
    except DownloadError:
        raise
    except errors.RemoteEntryNotFoundError as error:
        raise NoSuchFile(f"{what}: the repository has no such file.") from error
    except Exception as error:
        raise DownloadError(f"{what}: {_reason(error, folder)}") from error


def _reason(error: Exception, folder: str) -> str:
    from huggingface_hub import constants

    status = getattr(getattr(error, "response", None), "status_code", None)
    if constants.HF_HUB_OFFLINE:
        return f"it is not in the cache ({folder}), and HF_HUB_OFFLINE forbids to ask for it: run once without."
    if status in (401, 403, 404):
        return (
            f"the server answers {status}: check the spelling. If it is private or asks for consent, accept its terms "
            "on its page and log in (`hf auth login`)."
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"the disk of {folder} is full ({error.strerror}): make room, or let HF_HOME name a folder elsewhere."
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        return f"cannot write to {folder} ({error}): let HF_HOME name a folder that you may write to."
    if isinstance(error, ValueError):
        return str(error)
    return f"{error.__cause__ or error or type(error).__name__}: check the connection, and run again."
