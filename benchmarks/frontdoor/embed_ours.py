"""Our engine for encoders, as a driver: ``python -m benchmarks.frontdoor.embed_ours DIRECTORY THREADS BATCH_TOKENS``.

It reads and answers what benchmarks/drivers/sentence_transformers_encode.py does: texts come in, vectors are made, in
this process; ``batch_size`` is not looked at.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import closing

from llmos.infer.encoder import EncoderEngine
from llmos.infer.encoder_messages import EmbedRequest


def main() -> None:
    """Answer until stdin ends."""
    directory, threads, tokens = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with closing(EncoderEngine(directory, threads=threads, token_budget=tokens, max_wait_s=0)) as engine:
        print(json.dumps({"ready": True}), flush=True)
        for number, line in enumerate(sys.stdin):
            asked = json.loads(line)
            began = time.perf_counter()
            texts = engine.tokenizer.encode(asked["texts"], engine.context_length)
            made_ND = asyncio.run(engine.embed(EmbedRequest(str(number), tuple(texts))))
            wall_s = time.perf_counter() - began
            print(json.dumps({"wall_s": wall_s, "vector": made_ND[0].tolist()}), flush=True)


if __name__ == "__main__":
    main()
