"""The files for users in a trained model's folder: model card and MLflow pyfunc."""
