"""Make the MLflow user that runs record with; asked again, it does nothing.

kubectl -n paft exec -i deploy/mlflow -- python - < k8s/mlflow_user.py
"""

import os

from mlflow.exceptions import MlflowException
from mlflow.server import get_app_client

os.environ["MLFLOW_TRACKING_USERNAME"] = os.environ["MLFLOW_AUTH_ADMIN_USERNAME"]
os.environ["MLFLOW_TRACKING_PASSWORD"] = os.environ["MLFLOW_AUTH_ADMIN_PASSWORD"]
name, password = os.environ["PAFT_MLFLOW_USERNAME"], os.environ["PAFT_MLFLOW_PASSWORD"]
client = get_app_client("basic-auth", tracking_uri="http://localhost:5000")
try:
    client.create_user(name, password)
    print(f"made user {name}")
except MlflowException as error:
    if error.error_code != "RESOURCE_ALREADY_EXISTS":
        raise
    client.update_user_password(name, password)
    print(f"user {name} is there; its password is the Secret's")
