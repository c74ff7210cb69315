"""The specs that every test here starts from, as a user writes them."""

TRAIN_JOB = """\
kind: TrainJob
name: stdlib-coder
model: {preset: tiny}                    # or {config: DIR} or {ref: name@version}
data: {path: "src/**/*.py"}
mesh: {dp: 2}                            # or `auto`
workers: {min: 2, max: 2}
optimizer: {name: adamw, learning_rate: 3.0e-4}
steps: 400
output: {model: stdlib-coder}
"""

SERVICE = """\
kind: Service
name: coder
model: stdlib-coder@1
mesh: {tp: 1, pp: 1}
replicas: {min: 1, max: 1}
"""
