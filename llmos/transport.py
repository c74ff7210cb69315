"""One HTTP call to a cluster: bounded retries, every failure as the leaf of ``errors.py`` that the server raised."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx

from llmos import errors
from llmos.errors import CapacityError, ClusterError, LlmosError, SpecError
from llmos.settings import ENV_URL, Connection

FIRST_CONTACT_S = 1.0  # an address where nobody has answered yet is more likely wrong than restarting
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0


class Transport:
    """Calls to the cluster at ``connection``.

    A call that could not be delivered, or that met a restarting control module (503), is repeated with growing pauses
    for ``retry_s`` seconds. A call that may have arrived is repeated only if it is ``repeatable``.
    """

    def __init__(
        self, connection: Connection, *, timeout_s: float, retry_s: float, transport: httpx.BaseTransport | None = None
    ) -> None:
        self.connection = connection
        self.retry_s = retry_s
        self._reached = False
        self._http = httpx.Client(
            base_url=connection.url,
            headers={"Authorization": f"Bearer {connection.key}"},
            timeout=timeout_s,
            transport=transport,
            trust_env=not connection.loopback,  # HTTP_PROXY must not capture calls to this very machine
        )

    def close(self) -> None:
        self._http.close()

    def call(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        params: dict[str, Any] | None = None,
        repeatable: bool = True,
    ) -> Any:
        """The JSON that ``method path`` answers. Raises the leaf the server named, ClusterError if there was none."""
        start, pause_s = time.monotonic(), FIRST_PAUSE_S
        while True:
            try:
                response = self._http.request(method, path, json=body, params=params)
            except httpx.TransportError as error:
                failure: LlmosError = self._unreachable(error)
                again = repeatable or isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
            else:
                self._reached = True
                if response.is_success:
                    return self._json(response)
                failure = error_of(response)
                again = repeatable and response.status_code == ClusterError.http_status
            patience_s = self.retry_s if self._reached else min(self.retry_s, FIRST_CONTACT_S)
            if not again or time.monotonic() + pause_s > start + patience_s:
                raise failure
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _unreachable(self, error: httpx.TransportError) -> ClusterError:
        what = "did not answer in time" if isinstance(error, httpx.TimeoutException) else "cannot be reached"
        return ClusterError(
            f"the cluster at {self.connection.url} {what} ({str(error) or type(error).__name__})",
            hint=f"is it running? start it with `llmos up`, or name another with {ENV_URL} or `llmos login URL`",
        )

    def _json(self, response: httpx.Response) -> Any:
        try:
            return response.json() if response.content else None
        except ValueError as error:
            raise _stranger(response) from error


def error_of(response: httpx.Response) -> LlmosError:
    """The error an unsuccessful response carries, rebuilt as the leaf it was raised as (by code, else by status)."""
    try:
        told = response.json()["error"]
        message, code = str(told["message"]), told.get("code")
    except (ValueError, KeyError, TypeError, AttributeError):
        return _stranger(response)
    leaf = _BY_CODE.get(code) or _BY_STATUS.get(response.status_code, LlmosError)
    error = leaf.__new__(leaf)  # leaves differ in their signatures; the fields below are what they share
    LlmosError.__init__(error, message, hint=told.get("hint") or "", param=told.get("param"))
    if isinstance(error, SpecError):
        first, *rest = message.splitlines()
        error.problems, error.source = tuple(line.strip() for line in rest), first.partition(" has ")[0]
    if isinstance(error, CapacityError):
        wait = response.headers.get("retry-after", "")
        error.retry_after_s = float(wait) if wait.isdecimal() else 1.0  # a proxy may send a date
    return error


def _stranger(response: httpx.Response) -> LlmosError:
    kind = response.headers.get("content-type", "no content type").partition(";")[0]
    return ClusterError(
        f"{response.request.url} answered {response.status_code} with something that is not llmos JSON ({kind})",
        hint=f"check the address: is another program listening there? ({ENV_URL}, `llmos login URL`)",
    )


def _leaves(root: type[LlmosError]) -> Iterator[type[LlmosError]]:
    for leaf in root.__subclasses__():
        yield leaf
        yield from _leaves(leaf)


_BY_CODE = {leaf.__new__(leaf).code: leaf for leaf in _leaves(LlmosError)}
_BY_STATUS: dict[int, type[LlmosError]] = {
    400: errors.UsageError,
    401: errors.AuthError,
    403: errors.ForbiddenError,
    404: errors.NotFoundError,
    409: errors.ConflictError,
    422: errors.DataError,
    429: errors.CapacityError,
    503: errors.ClusterError,
}
