"""The turns of a chat."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from llmos.openai.tools import EarlierCall
from llmos.openai.wire import Hint, Unsupported, Wire


class Message(Wire):
    """One turn of a chat. Parts of a content are joined. Only a turn that calls tools may be without content."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    tool_calls: list[EarlierCall] | None = None
    tool_call_id: str | None = Field(default=None, validate_default=True, description="which call a tool answers")
    content: str | list[dict[str, Any]] | None = Field(default=None, validate_default=True)
    name: Hint
    refusal: Hint
    audio: Unsupported
    function_call: Unsupported

    @field_validator("tool_calls")
    @classmethod
    def _of_assistants(cls, value: list[EarlierCall] | None, info: ValidationInfo) -> list[EarlierCall] | None:
        if value and info.data.get("role") != "assistant":
            raise ValueError("is only for the role `assistant`")
        return value

    @field_validator("tool_call_id")
    @classmethod
    def _of_tools(cls, value: str | None, info: ValidationInfo) -> str | None:
        if (value is not None) != (info.data.get("role") == "tool"):
            raise ValueError("is missing" if value is None else "is only for the role `tool`")
        return value

    @field_validator("content", mode="before")
    @classmethod
    def _text(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None and not info.data.get("tool_calls"):
            raise ValueError("is missing")
        if not isinstance(value, list):
            return value
        for part in value:
            if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
                raise ValueError('has a part that is no text: expected {"type": "text", "text": …}')
        return "".join(part["text"] for part in value)

    @property
    def plain(self) -> dict[str, Any]:
        """What chat templates know: developers are the system's, as OpenAI says of its own models."""
        found: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": self.content}
        if self.tool_calls:
            found["tool_calls"] = [call.plain for call in self.tool_calls]
        return found if self.tool_call_id is None else {**found, "tool_call_id": self.tool_call_id}
