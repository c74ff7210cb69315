"""``encode`` of sentence-transformers: ``python sentence_transformers_encode.py DIRECTORY THREADS``.

Each line on stdin is a JSON object with ``texts`` and ``batch_size``; each answer a line on stdout, with ``wall_s`` and
the first numbers of the first vector. The first line out says that it is ready.
"""

import json
import sys
import time

import torch
from sentence_transformers import SentenceTransformer


def main() -> None:
    """Answer until stdin ends."""
    directory, threads = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(threads)
    model = SentenceTransformer(directory, device="cpu")
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        began = time.perf_counter()
        made = model.encode(asked["texts"], batch_size=asked["batch_size"], show_progress_bar=False)
        wall_s = time.perf_counter() - began
        assert made.shape[0] == len(asked["texts"])
        print(json.dumps({"wall_s": wall_s, "vector": made[0].tolist()}), flush=True)


if __name__ == "__main__":
    main()
