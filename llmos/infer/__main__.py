"""A model without a cluster.

    python -m llmos.infer MODEL_DIR PROMPT [--chat]      print the answer as it comes
    python -m llmos.infer MODEL_DIR --serve              OpenAI's API on http://127.0.0.1:8000/v1

The server asks for the key in ``LLMOS_API_KEY``; without one it makes a key and prints it, once.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import sys
from pathlib import Path

import uvicorn

from llmos.errors import LlmosError, UsageError
from llmos.infer.local import LocalEngine
from llmos.infer.request import GenerationRequest, SamplingParams
from llmos.serving import standalone
from llmos.settings import ENV_KEY

_SHUTDOWN_S = 5


def main() -> int:
    """Returns the exit code: 0, or that of the error, which goes to stderr."""
    args = _arguments()
    try:
        if args.serve == (args.prompt is not None):
            raise UsageError("expected a prompt, or `--serve` and no prompt")
        engine = LocalEngine(
            args.model_dir,
            context_length=args.context_length,
            dtype=args.dtype,
            device=args.device,
            threads=args.threads,
        )
        if args.serve:
            _serve(args, engine)
        else:
            asyncio.run(_print(args, engine))
            engine.close()
    except LlmosError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


async def _print(args: argparse.Namespace, engine: LocalEngine) -> None:
    tokenizer = engine.tokenizer
    if args.chat:
        tokens = tokenizer.encode_chat([{"role": "user", "content": args.prompt}])
    else:
        tokens = tokenizer.encode(args.prompt, add_special_tokens=True)
    params = SamplingParams(args.max_tokens, args.temperature, top_p=args.top_p, seed=args.seed)
    async for event in engine.generate(GenerationRequest("cli", tuple(tokens), params)):
        print(event.text, end="", flush=True)
    print()


def _serve(args: argparse.Namespace, engine: LocalEngine) -> None:
    key = os.environ.get(ENV_KEY)
    if not key:
        key = secrets.token_urlsafe(32)
        print(f"API key (set {ENV_KEY} to choose one): {key}", file=sys.stderr)
    name = args.name or Path(args.model_dir).resolve().name
    print(f"serving `{name}` on http://{args.host}:{args.port}/v1", file=sys.stderr)
    app = standalone(engine, name, key)
    uvicorn.run(app, host=args.host, port=args.port, log_level="warning", timeout_graceful_shutdown=_SHUTDOWN_S)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m llmos.infer", description="Generate with a model, without a cluster.")
    parser.add_argument("model_dir", help="a model in the Hugging Face layout")
    parser.add_argument("prompt", nargs="?", help="the text to continue")
    parser.add_argument("--chat", action="store_true", help="the prompt is a message in a chat")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--seed", type=int, help="same seed, same answer")
    parser.add_argument("--context-length", type=int, help="tokens of prompt and answer (default: the model's)")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU cores to compute with")
    parser.add_argument("--serve", action="store_true", help="answer HTTP requests instead of a prompt")
    parser.add_argument("--name", help="the model's name in requests (default: the directory's)")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
