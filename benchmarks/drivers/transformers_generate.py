"""``model.generate`` of transformers: ``python transformers_generate.py DIRECTORY THREADS DTYPE DEVICE``.

Each line on stdin is a JSON object with ``prompts`` (lists of tokens, all of one length) and ``new`` (tokens to
generate for each); each answer a line on stdout, with ``wall_s``. The first line out says that it is ready.
"""

import json
import sys
import time

import torch
import transformers


def main() -> None:
    """Answer until stdin ends."""
    directory, threads, dtype, device = sys.argv[1], int(sys.argv[2]), getattr(torch, sys.argv[3]), sys.argv[4]
    torch.set_num_threads(threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval().to(device)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        ids = torch.tensor(asked["prompts"], device=device)
        began = time.perf_counter()
        with torch.inference_mode():
            new = asked["new"]
            settings = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
            made = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        made = made.cpu()  # waits for a card
        wall_s = time.perf_counter() - began
        assert made.shape == (ids.shape[0], ids.shape[1] + new)
        print(json.dumps({"wall_s": wall_s}), flush=True)


if __name__ == "__main__":
    main()
