"""A model without a cluster.

    python -m llmos.infer MODEL_DIR --prompt TEXT [--chat]      print the answer as it comes
    python -m llmos.infer MODEL_DIR --serve                     OpenAI's API on http://127.0.0.1:8000/v1

An encoder answers ``/v1/embeddings`` and takes no prompt. The server asks for the key in ``LLMOS_API_KEY``; without
one it makes a key and prints it, once.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn

from llmos.errors import LlmosError, UsageError
from llmos.front.protocol import BoundedHttp
from llmos.infer.encoder import EncoderEngine
from llmos.infer.local import LocalEngine
from llmos.infer.options import DTYPES, RUNNERS
from llmos.infer.request import GenerationRequest, SamplingParams
from llmos.models.encoder_config import is_encoder
from llmos.serving import standalone
from llmos.settings import ENV_KEY

if TYPE_CHECKING:
    from llmos.control.store.completions import Completions

_SHUTDOWN_S = 5
_STORED = 10_000
"""Chats that are kept, the newest ones."""
_OPTIONS = (
    *("context_length", "dtype", "device", "runner", "threads", "max_batch", "token_budget"),
    *("tp", "pp", "speculative", "draft"),
)
"""Arguments that are the engine's."""
_OF_ENCODERS = {"context_length", "dtype", "device", "threads", "max_batch", "token_budget"}


def main() -> int:
    """Returns the exit code: 0, or that of the error, which goes to stderr."""
    args = _arguments()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("llmos").setLevel(logging.INFO)
    try:
        prompts = [prompt for prompt in (args.prompt, args.text) if prompt is not None]
        if len(prompts) + args.serve != 1:
            raise UsageError("expected a prompt, or `--serve` and no prompt")
        chosen = {name: getattr(args, name) for name in _OPTIONS if getattr(args, name) is not None}
        if is_encoder(args.model_dir):
            _serve(args, _encoder(args, chosen))
            return 0
        engine = LocalEngine(args.model_dir, process=args.serve, **chosen)
        if args.serve:
            _serve(args, engine)
        else:
            asyncio.run(_print(args, prompts[0], engine))
            engine.close()
    except LlmosError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _encoder(args: argparse.Namespace, chosen: dict[str, Any]) -> EncoderEngine:
    """Raises UsageError for what only models that generate can do."""
    if not args.serve:
        raise UsageError(f"{args.model_dir} is an encoder, which writes nothing: expected `--serve`", param="prompt")
    if others := sorted(chosen.keys() - _OF_ENCODERS):
        option = "--" + others[0].replace("_", "-")
        raise UsageError(f"`{option}` is not for encoders", hint="Leave it out.", param=others[0])
    return EncoderEngine(args.model_dir, process=True, **chosen)


async def _print(args: argparse.Namespace, prompt: str, engine: LocalEngine) -> None:
    tokenizer = engine.tokenizer
    if args.chat:
        tokens = tokenizer.encode_chat([{"role": "user", "content": prompt}])
    else:
        tokens = tokenizer.encode(prompt, add_special_tokens=True)
    params = SamplingParams(args.max_tokens, args.temperature, top_p=args.top_p, seed=args.seed)
    async for event in engine.generate(GenerationRequest("cli", tuple(tokens), params)):
        print(event.text, end="", flush=True)
    print()


def _serve(args: argparse.Namespace, engine: LocalEngine | EncoderEngine) -> None:
    key = os.environ.get(ENV_KEY)
    if not key:
        key = secrets.token_urlsafe(32)
        print(f"API key (set {ENV_KEY} to choose one): {key}", file=sys.stderr)
    name = args.name or Path(args.model_dir).resolve().name
    print(f"serving `{name}` on http://{args.host}:{args.port}/v1", file=sys.stderr)
    app = standalone(engine, name, key, _completions(args.store) if args.store else None)
    options: dict[str, Any] = {
        "log_level": "warning",
        "timeout_graceful_shutdown": _SHUTDOWN_S,
        "http": BoundedHttp,
        "ws": "none",
    }
    uvicorn.run(app, host=args.host, port=args.port, **options)


def _completions(path: str) -> Completions:
    """The chats in the file at ``path``, which is made if it is not there."""
    from llmos.control.store.completions import Completions
    from llmos.control.store.database import Database

    return Completions(Database(Path(path)), _STORED)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m llmos.infer", description="Generate with a model, without a cluster.")
    parser.add_argument("model_dir", help="a model in the Hugging Face layout")
    parser.add_argument("text", nargs="?", help="the prompt, without --prompt")
    parser.add_argument("--prompt", help="the text to continue")
    parser.add_argument("--chat", action="store_true", help="the prompt is a message in a chat")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--seed", type=int, help="same seed, same answer")
    parser.add_argument("--context-length", type=int, help="tokens of prompt and answer (default: the model's)")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights (default: auto)")
    parser.add_argument("--device", help="cpu (default), cuda, cuda:1 …")
    parser.add_argument("--runner", choices=RUNNERS, help="what computes (default: auto)")
    parser.add_argument("--threads", type=int, help="CPU cores to compute with (default: as many as make it fastest)")
    parser.add_argument("--max-batch", type=int, help="sequences at once")
    parser.add_argument("--token-budget", type=int, help="tokens of a step, prompts' included")
    parser.add_argument("--tp", type=int, help="processes that share each layer")
    parser.add_argument("--pp", type=int, help="processes that share the layers")
    parser.add_argument("--speculative", type=int, help="tokens to guess in each step (default: none)")
    parser.add_argument("--draft", help="a smaller model that guesses (default: looked up in the text)")
    parser.add_argument("--serve", action="store_true", help="answer HTTP requests instead of a prompt")
    parser.add_argument("--name", help="the model's name in requests (default: the directory's)")
    parser.add_argument("--store", help="a file in which chats with `store: true` are kept (default: none are)")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
