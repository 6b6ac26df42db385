"""Put trained weights into the package: for an input size, their digest beside them.

    python training/release.py runs/builtin/weights.safetensors --input-size 384

Writes src/refinesam/assets/builtin.{safetensors,json}: fp16, rounded to 8 of its 10 bits of mantissa, which zip makes a
tenth smaller. `make results` then says what has to be measured anew.
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
    parser.add_argument("weights", type=Path)
    parser.add_argument("--input-size", type=int, default=0, help="0 keeps the size of training")
    arguments = parser.parse_args()
    model = load_model(arguments.weights)
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
