"""What a trained model's folder holds for its users: model card and MLflow pyfunc."""
