"""Agreement: what people graded, and how far they and the judge agree."""

from rebase.pipelines.agreement.pipeline import create_pipeline as create_pipeline
