"""Where llmos keeps its state, and how a client finds its cluster.

Precedence, each field on its own: an argument, then the environment (``LLMOS_URL``, ``LLMOS_API_KEY``,
``LLMOS_STATE_DIR``), then ``client.json`` in the state directory, which ``llmos up`` and ``llmos login`` write.
A key of ``client.json`` is only ever sent to the address it was stored with.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from llmos.errors import AuthError, ClusterError, UsageError

ENV_URL = "LLMOS_URL"
ENV_KEY = "LLMOS_API_KEY"
ENV_STATE_DIR = "LLMOS_STATE_DIR"

FAKE_GPUS = "llmos-gpus-fake"
"""The label of nodes whose GPUs exist as numbers only: what is given one of them computes on the CPU."""
_START_OR_LOGIN = "start a cluster with `llmos up`, or connect to one with `llmos login URL`"


@dataclass(frozen=True, slots=True)
class Connection:
    """The address of a cluster's front door (no trailing slash) and the API key for it, which ``repr`` leaves out."""

    url: str
    key: str = field(repr=False)

    def __post_init__(self) -> None:
        if not (self.key.isascii() and self.key.isprintable()):  # it could not be sent, and must not be shown
            raise UsageError(
                "the API key holds characters that no key has",
                hint="expected llmos_<id>_<secret>, as `llmos keys create` prints it",
            )

    @property
    def loopback(self) -> bool:
        """Whether the address is this very machine."""
        return urlsplit(self.url).hostname in ("127.0.0.1", "localhost", "::1")


def state_dir(path: Path | str | None = None) -> Path:
    """The state directory, absolute: ``path``, else ``LLMOS_STATE_DIR``, else ``~/.llmos``. It need not exist."""
    chosen = path or os.environ.get(ENV_STATE_DIR) or Path.home() / ".llmos"
    return Path(chosen).expanduser().absolute()


def connection(url: str | None = None, key: str | None = None) -> Connection:
    """The cluster to talk to and the key to show it.

    Raises ClusterError when no address is known, AuthError when no key is known for that address, UsageError for an
    address that is not one or a ``client.json`` that cannot be read.
    """
    address, secret = url or os.environ.get(ENV_URL), key or os.environ.get(ENV_KEY)
    remembered = None if address and secret else stored()
    if remembered and not address:
        address = remembered.url
    if not address:
        known = f"{ENV_URL} is not set and {client_file()} does not exist"
        raise ClusterError(f"no llmos cluster is known: {known}", hint=_START_OR_LOGIN)
    address = normalize_url(address)
    if remembered and remembered.url == address:
        secret = secret or remembered.key
    if not secret:
        raise AuthError(f"no API key is known for {address}", hint=f"run `llmos login {address}`, or set {ENV_KEY}")
    return Connection(address, secret)


def normalize_url(url: str) -> str:
    """``url`` without trailing slash, query or fragment. Raises UsageError unless it is an http(s) address."""
    try:
        parts = urlsplit(url.strip())
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not parts.username
    except ValueError:  # a port beyond 65535, or half an IPv6 address
        known = False
    if not known:
        raise UsageError(
            f"`{url}` is not the address of a cluster: expected http://HOST:PORT or https://HOST",
            hint="for example http://127.0.0.1:8000",
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def client_file(directory: Path | None = None) -> Path:
    """The file that remembers the last `llmos up` or `llmos login`."""
    return state_dir(directory) / "client.json"


def save_connection(connection: Connection, directory: Path | None = None) -> Path:
    """Remember ``connection`` in ``client.json`` (0600, replaced in one step). Returns the file's path."""
    path = client_file(directory)
    import tempfile  # loading it costs more than all that commands need of this module

    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".client-")  # mkstemp creates it 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump({"url": normalize_url(connection.url), "key": connection.key}, file)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path


def stored(directory: Path | None = None) -> Connection | None:
    """What ``client.json`` remembers, None if there is none. Raises UsageError if it cannot be read."""
    path = client_file(directory)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return Connection(normalize_url(raw["url"]), str(raw["key"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, OSError, UsageError) as error:
        raise UsageError(
            f"{path} cannot be read: expected a JSON object with `url` and `key`",
            hint="write it anew with `llmos login URL`",
        ) from error
