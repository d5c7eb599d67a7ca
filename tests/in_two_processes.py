"""Runs the tests that start Ray beside those that do not: two cores are then seldom idle.

    python tests/in_two_processes.py "not slow and not gpu"

What the tests with Ray print comes when the others are over. The exit code is 0 if both passed.
"""

import subprocess
import sys
import tempfile


def main(selected: str) -> int:
    """Run both and return the exit code."""
    pytest = [sys.executable, "-m", "pytest", "-m"]
    with tempfile.TemporaryFile() as output:
        with_ray = subprocess.Popen(
            [*pytest, f"ray and {selected}"], stdout=output, stderr=subprocess.STDOUT
        )
        try:
            failed = subprocess.run([*pytest, f"not ray and {selected}"], check=False).returncode
            failed = with_ray.wait() or failed
        finally:
            with_ray.terminate()
        output.seek(0)
        sys.stdout.buffer.write(output.read())
    return failed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
