"""Students: any number of them, trained on one set of examples that was bought once."""

from rebase.pipelines.students.pipeline import create_pipeline as create_pipeline
