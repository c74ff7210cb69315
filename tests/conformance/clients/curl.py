"""``curl -N``: the lines of a stream come one by one, as they are made."""

import json
import os
import subprocess
import time

body = {
    "model": os.environ["MODEL"],
    "messages": [{"role": "user", "content": "Walk?"}],
    "max_tokens": 40,
    "stream": True,
}
headers = ("-H", f"Authorization: Bearer {os.environ['OPENAI_API_KEY']}", "-H", "Content-Type: application/json")
address = f"{os.environ['OPENAI_BASE_URL']}/chat/completions"
command = ["curl", "-sSN", address, *headers, "-d", json.dumps(body)]
came = []
with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as curl:
    for line in curl.stdout:
        if line.strip():
            assert line.startswith("data: "), line
            came.append((time.monotonic(), line.removeprefix("data: ").strip()))
assert came[-1][1] == "[DONE]" and len(came) > 10 and came[-1][0] > came[0][0]
assert json.loads(came[0][1])["choices"][0]["delta"]["role"] == "assistant"
print(subprocess.run(["curl", "--version"], capture_output=True, text=True).stdout.split()[1])
