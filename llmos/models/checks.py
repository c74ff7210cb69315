"""Checks of a model's shape, field by field: what they raise names the field, what it is and what was expected."""

from __future__ import annotations

from llmos.errors import ModelError, UnsupportedModelError


def is_a(value: object, kinds: tuple[type, ...]) -> bool:
    """Whether ``value`` is one of ``kinds``; True and False are no numbers here."""
    return isinstance(value, kinds) and not isinstance(value, bool)


def check_positive(name: str, value: object, kinds: tuple[type, ...]) -> None:
    """Raises ModelError unless ``value`` is a positive one of ``kinds``: (int,) or (int, float)."""
    if not (is_a(value, kinds) and value > 0):  # type: ignore[operator]
        raise wrong(name, value, "a positive " + ("number" if float in kinds else "whole number"))


def wrong(name: str, found: object, expected: str) -> ModelError:
    """The error for a field that cannot be as it is, whoever computes the model."""
    return ModelError(_message(name, found, expected), hint="Copy or export the model again.", param=name)


def unsupported(name: str, found: object, expected: str) -> UnsupportedModelError:
    """The error for a field that says what is not computed here."""
    hint = "llmos computes dense decoders of the families Llama, Mistral, Qwen2 and Qwen3."
    return UnsupportedModelError(_message(name, found, expected), hint=hint, param=name)


def _message(name: str, found: object, expected: str) -> str:
    return f"`{name}` is {str(found)[:80]}: expected {expected}"
