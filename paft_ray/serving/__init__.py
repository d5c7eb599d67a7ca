"""A trained model as an MLflow pyfunc: text in, answer out.

folder.py   writes the folder that `mlflow.pyfunc.load_model` loads
model.py    what is loaded; imports mlflow

Covered: a folder of code, adapter and signature, models-from-code and no pickle; the base model
is found by its name or path where the model is loaded. Not covered: batching over requests,
several GPUs.
"""
