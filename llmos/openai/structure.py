"""Answers of a given form: OpenAI's ``response_format``, and vLLM's ``structured_outputs``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from llmos.openai.wire import Label, Wire


@dataclass(frozen=True, slots=True)
class Constraint:
    """The grammar of an answer, in the engine's words, and the ``field`` that asks for it."""

    kind: Literal["json_schema", "json_object", "choice", "regex", "lark"]
    text: str
    field: str


class JsonSchema(Wire):
    """A named JSON schema; every answer obeys it, whatever ``strict`` says."""

    name: Label
    description: Label
    strict: Label
    content: dict[str, Any] = Field(alias="schema")


class ResponseFormat(Wire):
    """Text, any JSON object, or JSON by a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = Field(default=None, validate_default=True)

    @field_validator("json_schema")
    @classmethod
    def _only_for_its_type(cls, value: JsonSchema | None, info: ValidationInfo) -> JsonSchema | None:
        if (value is not None) != (info.data.get("type") == "json_schema"):
            raise ValueError("is missing" if value is None else 'is only for `"type": "json_schema"`')
        return value

    @property
    def constraint(self) -> Constraint | None:
        """What the engine is asked for."""
        if self.json_schema is not None:
            return Constraint("json_schema", json.dumps(self.json_schema.content), "response_format")
        return Constraint("json_object", "", "response_format") if self.type == "json_object" else None


class StructuredOutputs(Wire):
    """One of them: a JSON schema, any JSON object, a choice of texts, a regular expression, a grammar like Lark's."""

    schema_: dict[str, Any] | str | None = Field(default=None, alias="json")
    json_object: bool | None = None
    choice: list[str] | None = Field(default=None, min_length=1)
    regex: str | None = None
    grammar: str | None = None

    @model_validator(mode="after")
    def _one(self) -> StructuredOutputs:
        if len(self.model_fields_set) != 1 or self.json_object is False:
            raise ValueError("expected one of json, json_object, choice, regex and grammar")
        return self

    @property
    def constraint(self) -> Constraint:
        """What the engine is asked for."""
        where = "structured_outputs"
        if self.schema_ is not None:
            text = self.schema_ if isinstance(self.schema_, str) else json.dumps(self.schema_)
            return Constraint("json_schema", text, where)
        if self.choice is not None:
            return Constraint("choice", json.dumps(self.choice), where)
        if self.regex is not None:
            return Constraint("regex", self.regex, where)
        return Constraint("json_object", "", where) if self.grammar is None else Constraint("lark", self.grammar, where)
