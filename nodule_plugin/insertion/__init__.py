"""A nodule into a patient's CT: the series written again, its mask, a structured report; and LIDC's own masks as files.

What is done to a series stands in docs/insertion.md. Needs highdicom (the extra ``dicom``).
"""
