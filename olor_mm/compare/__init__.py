"""Finished runs of several methods as one report. Imports nothing else of olor_mm."""
