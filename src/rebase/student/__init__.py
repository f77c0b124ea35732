"""The model side: the student, how it is asked, trained and run."""
