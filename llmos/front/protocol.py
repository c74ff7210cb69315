"""HTTP/1.1 as uvicorn speaks it, with bounded heads: what a server keeps of a request before it knows who sends it.

uvicorn's own bound is that of bodies, which the routes read or do not read; lines of a head it would keep without end.
"""

from __future__ import annotations

import json
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from llmos.openai import errors

MAX_HEAD_BYTES = 64 * 2**10
"""Of a request: its first line and its headers; also of what comes between two bytes of its body, or after it."""
MAX_HEADERS = 128
_WHAT = f"the head of the request is too large: expected at most {MAX_HEADERS} headers and {MAX_HEAD_BYTES} bytes"
_BODY = json.dumps(errors.body(_WHAT, errors.INVALID_REQUEST, code="headers_too_large")).encode()
_REFUSAL = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\n"
    b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(_BODY)
) + _BODY


class BoundedHttp(HttpToolsProtocol):
    """A connection. It is closed with a 431 when a head, or what is around a body, grows too large."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._around = 0  # bytes since the last that were of a body, or the last of a request
        self._too_large = False

    def data_received(self, data: bytes) -> None:
        """See :class:`asyncio.Protocol`."""
        if self._too_large:
            return
        self._around += len(data)
        super().data_received(data)
        if self._around > MAX_HEAD_BYTES and not self._too_large:
            self._refuse()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser, as all of these; also for trailers."""
        if len(self.headers) >= MAX_HEADERS:
            self._too_large = True
            raise ValueError(_WHAT)  # the parser stops, and `send_400_response` is called
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._around > MAX_HEAD_BYTES and self._head_bytes() > MAX_HEAD_BYTES:  # else they are of a body
            self._too_large = True
            raise ValueError(_WHAT)
        self._around = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._around = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._around = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What cannot be read is answered, if nothing is being answered yet."""
        if self._too_large:
            self._refuse()
        else:
            super().send_400_response(msg)

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def _refuse(self) -> None:
        self._too_large = True
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(_REFUSAL)
        self.transport.close()
