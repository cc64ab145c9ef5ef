"""Tasks with exact answers, generated from a seed: what a lossy method costs is counted on these."""
