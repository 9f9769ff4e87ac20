"""Turn the lines of ``pip config list`` into the shell exports that tell uv the same."""

from __future__ import annotations

import ast
import shlex
import sys

UV_NAMES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "no-index": "UV_NO_INDEX",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
    "proxy": "ALL_PROXY",
}


def main() -> None:
    """Read pip's settings from stdin; the environment's outrank the files', whose order is pip's own."""
    found: dict[str, str] = {}
    for line in sorted(sys.stdin, key=lambda line: line.startswith(":env:")):
        name, _, value = line.rstrip("\n").partition("=")
        uv_name = UV_NAMES.get(name.rpartition(".")[2])
        if uv_name:
            words = str(ast.literal_eval(value)).split()
            found[uv_name] = ("," if uv_name == "UV_FIND_LINKS" else " ").join(words)
    if "UV_INDEX" in found:
        # pip weighs all indexes alike; which files are good is up to the hashes.
        found["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    for uv_name, value in found.items():
        sys.stdout.write(f"export {uv_name}={shlex.quote(value)}\n")


if __name__ == "__main__":
    main()
