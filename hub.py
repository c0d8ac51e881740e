"""Weights from the Hugging Face hub: from its local cache, else by a download that gives up on a silent hub.

Also the lock beside downloaded weights (WEIGHTS_DIR/weights.lock, written by cluster/download.py), which records the
sha256 of each file and whether its source publishes it.
"""

from pathlib import Path

from cli import UserError

from dataset.files import read_json, sha256_of

LOCK = "weights.lock"
ANSWER_TIMEOUT = 10  # seconds


def fetch(model: str, name: str) -> Path:
    """A file of a model on the hub, from the cache or downloaded into it.

    Args:
        model: name on the hub, owner/model.
        name: of the file.

    Raises UserError if the file is not in the cache and the hub does not answer within ANSWER_TIMEOUT seconds, is set
    to offline (HF_HUB_OFFLINE), or does not have it.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(model, name)
    if isinstance(cached, str):
        return Path(cached)
    require_answer(model, name)
    try:
        return Path(hf_hub_download(model, name))
    except Exception as error:  # httpx, the hub's client and the disk each raise their own kinds
        raise UserError(f"{model}/{name}: the download failed ({_first_line(error)})") from None


def is_local(model: str, *names: tuple[str, ...]) -> bool:
    """Whether a model needs no download: it is a folder, or the cache has it.

    Args:
        model: name on the hub, or a folder.
        names: for each file that the model needs, the names that it may have.

    Raises UserError as require_answer() does, if the model needs a download.
    """
    from huggingface_hub import try_to_load_from_cache

    if Path(model).is_dir():
        return True
    if all(any(isinstance(try_to_load_from_cache(model, name), str) for name in either) for either in names):
        return True
    require_answer(model, "config.json")
    return False


def require_answer(model: str, name: str) -> None:
    """Print what will be downloaded, and check that the hub answers.

    The hub's client alone retries a silent server for minutes. Raises UserError if there is no answer.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, is_offline_mode

    if is_offline_mode():
        raise UserError(f"{model} is not in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids a download")
    print(f"downloading {model} from {constants.ENDPOINT} into {constants.HF_HUB_CACHE}", flush=True)
    try:
        get_hf_file_metadata(hf_hub_url(model, name), timeout=ANSWER_TIMEOUT)
    except Exception as error:  # httpx and the hub's client each raise their own kinds
        raise UserError(
            f"{model} is not in the cache {constants.HF_HUB_CACHE}, and {constants.ENDPOINT} does not provide it "
            f"({_first_line(error)})"
        ) from None


def is_published(path: Path) -> bool:
    """Whether the lock beside a file says that its source publishes the file's sha256, and the file still has it."""
    lock = path.parent / LOCK
    entry = read_json(lock).get(path.name, {}) if lock.is_file() else {}
    return entry.get("verified") is True and entry["sha256"] == sha256_of(path)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0][:160]
