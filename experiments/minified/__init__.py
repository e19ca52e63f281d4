"""The stages of `minified_models.py`: task, lab, the families of small models, tables."""
