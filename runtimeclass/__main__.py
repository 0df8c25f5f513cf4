"""`python -m runtimeclass render [--default-tee snp|tdx] [--tee-keys] [DIR]`: manifests to stdout or into a folder."""

import argparse
import sys
from pathlib import Path

from runtimeclass.model import Tee
from runtimeclass.render import manifests


def main() -> int:
    """Console entry."""
    parser = argparse.ArgumentParser(prog="python -m runtimeclass", description=__doc__)
    commands = parser.add_subparsers(required=True)
    render = commands.add_parser("render", help="render the RuntimeClasses")
    render.add_argument("--default-tee", choices=("none", "snp", "tdx"), default="none",
                        help="what kata-nvidia-gpu stands for; none makes it plain passthrough")  # fmt: skip
    render.add_argument("--tee-keys", action="store_true", help="count TEE keys (NFD rule kata-tee-keys)")
    render.add_argument("directory", nargs="?", type=Path, help="write one file a class instead of stdout")
    args = parser.parse_args()
    rendered = manifests(Tee(args.default_tee), tee_keys=args.tee_keys)
    if args.directory is None:
        sys.stdout.write("---\n".join(rendered.values()))
        return 0
    args.directory.mkdir(parents=True, exist_ok=True)
    for name, text in rendered.items():
        (args.directory / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
