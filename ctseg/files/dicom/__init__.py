"""DICOM: series in, segmentations, structure sets and reports out; the extra ``dicom`` brings what it needs."""
