"""The command ``llm``, which reads its models from a file."""

import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

LLM = Path(sys.executable).with_name("llm")
MODEL = """
- model_id: tested
  model_name: {MODEL}
  api_base: {OPENAI_BASE_URL}
  api_key_name: tested
  supports_schema: true
"""

with tempfile.TemporaryDirectory() as home:
    Path(home, "extra-openai-models.yaml").write_text(MODEL.format(**os.environ))
    environment = {**os.environ, "LLM_USER_PATH": home}

    def llm(*words: str) -> str:
        done = subprocess.run([LLM, *words], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    llm("keys", "set", "tested", "--value", os.environ["OPENAI_API_KEY"])
    asked = ("-m", "tested", "-o", "temperature", "0", "-o", "max_tokens", "16", "Walk?")
    assert llm(*asked) == llm(*asked, "--no-stream") != ""
    assert llm("-m", "tested", "Walk?", "--schema", "colour bool", "--no-stream", "-o", "seed", "1").startswith("{")
print(version("llm"))
