"""Put trained weights, or the mean of several, into the package: for an input size, their digest beside them.

    python training/release.py runs/a.safetensors runs/b.safetensors --shares 0.5 0.5 --mean runs/mean.safetensors
    python training/release.py runs/c.safetensors runs/a.safetensors --shares 0.6 0.4 --input-size 448

Writes src/refinesam/assets/builtin.{safetensors,json}: fp16, rounded to 8 of its 10 bits of mantissa, which zip makes a
tenth smaller. `make results` then says what has to be measured anew. With --mean, nothing but the mean, to go on from.
"""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import replace
from pathlib import Path

import torch

from refinesam.files import write_json
from refinesam.weights import load_model, rounded, save_weights

TARGET = Path(__file__).resolve().parent.parent / "src" / "refinesam" / "assets" / "builtin.safetensors"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, nargs="+")
    parser.add_argument("--shares", type=float, nargs="+", help="of each file in the mean; default: all the same")
    parser.add_argument("--mean", type=Path, help="write the mean there, and release nothing")
    parser.add_argument("--input-size", type=int, default=0, help="0 keeps the size of training")
    arguments = parser.parse_args()
    shares = arguments.shares or [1 / len(arguments.weights)] * len(arguments.weights)
    if len(shares) != len(arguments.weights) or abs(sum(shares) - 1) > 1e-6:
        parser.error("give one share for each file; together they are 1")
    models = [load_model(path) for path in arguments.weights]
    model, states = models[0], [one.state_dict() for one in models]
    model.load_state_dict(
        {name: sum(share * state[name] for share, state in zip(shares, states, strict=True)) for name in states[0]}
    )
    if arguments.mean:
        save_weights(model, arguments.mean)
        return
    model.config = replace(model.config, input_size=arguments.input_size or model.config.input_size)
    model.load_state_dict({name: rounded(value) for name, value in model.state_dict().items()})
    save_weights(model, TARGET, torch.float16)
    content = TARGET.read_bytes()
    described = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "size": len(content),
        "variant": model.config.name,
    }
    write_json(TARGET.with_suffix(".json"), described)


if __name__ == "__main__":
    main()
