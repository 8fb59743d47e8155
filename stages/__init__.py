"""One thin command a stage of the pipeline: `python -m stages.NAME`, run in the root of the repository."""
