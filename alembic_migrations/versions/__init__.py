"""The shipped branch ``proletarian``: each revision is one version of the job tables."""
