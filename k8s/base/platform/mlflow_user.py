"""Make the MLflow user that runs record with, as soon as the server answers.

What the server's pod runs after it was started; it counts as ready only then, so that no run meets
a server that does not know it. Where the user is there, its password becomes the Secret's.
"""

import os
import sys
import time
import urllib.request

from mlflow.exceptions import MlflowException
from mlflow.server import get_app_client

ADDRESS = "http://127.0.0.1:5000"
PATIENCE_S = 300


def answers() -> bool:
    """Whether the server is up."""
    try:
        with urllib.request.urlopen(f"{ADDRESS}/health", timeout=5):
            return True
    except OSError:
        return False


def main() -> None:
    """Wait, then make the user."""
    end = time.monotonic() + PATIENCE_S
    while not answers():
        if time.monotonic() > end:
            sys.exit(f"{ADDRESS} did not answer for {PATIENCE_S} s")
        time.sleep(1)
    for part in ("USERNAME", "PASSWORD"):
        os.environ[f"MLFLOW_TRACKING_{part}"] = os.environ[f"MLFLOW_AUTH_ADMIN_{part}"]
    user = [os.environ[f"PAFT_MLFLOW_{part}"] for part in ("USERNAME", "PASSWORD")]
    client = get_app_client("basic-auth", tracking_uri=ADDRESS)
    try:
        client.create_user(*user)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        client.update_user_password(*user)


if __name__ == "__main__":
    main()
