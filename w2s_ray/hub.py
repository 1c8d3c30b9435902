"""The Hugging Face hub: which commit a revision points to, and a repository's files.

Promises: a branch or tag is resolved to its commit before anything depends on it. Without a network the local cache
answers, or a copy of the repository below `$W2S_HUB_FOLDER` (`datasets/<id>` or `models/<id>`). What can't be had is one
message that says what to do. Nothing is unpickled, and no code from a repository runs.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Literal

from w2s_ray.errors import InputError

Kind = Literal["dataset", "model"]
FOLDER = "W2S_HUB_FOLDER"
TIMEOUT_S = 20.0
ID = r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?"
COMMIT = r"[0-9a-f]{40}"


def local_copy(repo: str, *, kind: Kind) -> Path | None:
    """The copy of a repository below `$W2S_HUB_FOLDER`, if there is one."""
    if not re.fullmatch(ID, repo):
        raise InputError(f"hub id '{repo}': allowed are names such as google/boolq")
    root = os.environ.get(FOLDER)
    folder = Path(root, f"{kind}s", repo) if root else None
    return folder if folder is not None and folder.is_dir() else None


@lru_cache(maxsize=1024)
def commit_of(repo: str, revision: str, *, kind: Kind) -> str:
    """The commit that a branch, tag or commit points to now. Without a network: the one it pointed to when it was last
    downloaded."""
    if re.fullmatch(COMMIT, revision):
        return revision
    import httpx2
    from huggingface_hub import HfApi, constants

    if not constants.HF_HUB_OFFLINE:
        try:
            info = HfApi().repo_info(repo, revision=revision, repo_type=kind, timeout=TIMEOUT_S)
            return str(info.sha)
        except (httpx2.HTTPError, OSError) as error:
            cached = _cached_commit(repo, revision, kind=kind)
            if cached is None:
                raise _as_input_error(error, repo, revision, kind=kind) from error
            return cached
    cached = _cached_commit(repo, revision, kind=kind)
    if cached is None:
        raise InputError(
            f"{kind} {repo}: HF_HUB_OFFLINE is set and the cache has no revision '{revision}' of it; "
            f"{_ways_to_get(repo, kind)}"
        )
    return cached


def fetch_files(repo: str, commit: str, *, pattern: str) -> list[Path]:
    """A data set's files that match a glob pattern, downloaded unless they are cached."""
    return matching_files(_fetch(repo, commit, (pattern,), kind="dataset"), pattern)


def fetch_model_files(repo: str, commit: str, *patterns: str) -> Path:
    """A folder with a model's files that match the patterns, downloaded unless they are cached."""
    return _fetch(repo, commit, patterns, kind="model")


def _fetch(repo: str, commit: str, patterns: tuple[str, ...], *, kind: Kind) -> Path:
    import httpx2
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, repo_type=kind, revision=commit, allow_patterns=list(patterns)))
    except (httpx2.HTTPError, OSError) as error:
        raise _as_input_error(error, repo, commit, kind=kind) from error


def matching_files(folder: Path, pattern: str) -> list[Path]:
    return sorted(path for path in folder.glob(pattern) if path.is_file())


def fetch_url(url: str) -> Path:
    """A file of the web: its copy at `$W2S_HUB_FOLDER/urls/<host>/<path>`, or a download that is kept in the cache."""
    from urllib.parse import urlparse

    import httpx2
    from huggingface_hub import constants

    parts = urlparse(url)
    inside = Path("urls", parts.netloc, *(part for part in parts.path.split("/") if part not in ("", "..")))
    root = os.environ.get(FOLDER)
    if root and Path(root, inside).is_file():
        return Path(root, inside)
    path = Path(constants.HF_HOME, "w2s_ray", inside)
    if path.is_file():
        return path
    try:
        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        response = httpx2.get(url, timeout=TIMEOUT_S, follow_redirects=True)
        response.raise_for_status()
    except (httpx2.HTTPError, OSError) as error:
        raise InputError(f"{url}: can't be downloaded ({error}); put a copy at ${FOLDER}/{inside}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    # written aside and renamed, so that another process never sees half a file
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(response.content)
    temporary.replace(path)
    return path


def _cached_commit(repo: str, revision: str, *, kind: Kind) -> str | None:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    path = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repo, repo_type=kind), "refs", revision)
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def _ways_to_get(repo: str, kind: Kind) -> str:
    command = f"hf download {repo}{' --repo-type dataset' if kind == 'dataset' else ''}"
    return f"download it where there is a network (`{command}`), or put a copy at ${FOLDER}/{kind}s/{repo}"


def _as_input_error(error: Exception, repo: str, revision: str, *, kind: Kind) -> InputError:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return InputError(
            f"{kind} {repo}: is gated; accept its terms at https://huggingface.co/{repo} and log in with `hf auth login` "
            "(or set HF_TOKEN)"
        )
    if isinstance(error, RevisionNotFoundError):
        return InputError(
            f"{kind} {repo}: has no revision '{revision}'; its branches are at https://huggingface.co/{repo}/branches"
        )
    if isinstance(error, RepositoryNotFoundError):
        return InputError(f"{kind} {repo}: the hub has no such repository, or it is private and HF_TOKEN is not set")
    reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    return InputError(f"{kind} {repo}: the hub can't be reached ({reason}); {_ways_to_get(repo, kind)}")
