"""The scripts of the pipeline's stages. dvc.yaml runs them from the project's folder, as `python -m stages.NAME`."""
