"""Students: train and evaluate several students on one set of examples."""

from rebase.pipelines.students.pipeline import create_pipeline as create_pipeline
