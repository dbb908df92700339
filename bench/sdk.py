"""Time create + start + wait + remove through the SDK in one process: `sdk.py IMAGE ROUNDS` prints milliseconds, one line each."""

from __future__ import annotations

import sys
import time

import nacre


def main() -> None:
    image, rounds = sys.argv[1], int(sys.argv[2])
    spec = nacre.ContainerSpec(image=image, command=("true",))
    with nacre.Engine() as engine:
        for number in range(rounds + 3):
            start = time.perf_counter()
            container = engine.containers.create(spec)
            container.start()
            code = container.wait()
            container.remove()
            taken = time.perf_counter() - start
            assert code == 0, code
            # The first rounds make the bridge, fill the page cache and finish imports.
            if number >= 3:
                print(f"{taken * 1000:.3f}")


main()
