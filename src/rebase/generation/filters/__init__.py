"""Filters between the ranking and the teacher (docs/method.md section 4): rows that must not, or need not, be sent."""

from rebase.generation.filters.base import Candidate as Candidate
from rebase.generation.filters.base import Filter as Filter
from rebase.generation.filters.base import Rejection as Rejection
from rebase.generation.filters.base import find_pattern as find_pattern
from rebase.generation.filters.contamination import contamination_filter as contamination_filter
from rebase.generation.filters.contamination import protected_texts as protected_texts
from rebase.generation.filters.duplicates import Duplicates as Duplicates
from rebase.generation.filters.duplicates import duplicate_filter as duplicate_filter
from rebase.generation.filters.exclusion import exclusion_filter as exclusion_filter
from rebase.generation.filters.exclusion import remove_excluded as remove_excluded
from rebase.generation.filters.exclusion import why_excluded as why_excluded
from rebase.generation.filters.licenses import license_allowed as license_allowed
from rebase.generation.filters.licenses import license_filter as license_filter
from rebase.generation.filters.passages import find_passage as find_passage
from rebase.generation.filters.passages import passage_filter as passage_filter
from rebase.generation.filters.shares import share_filter as share_filter
