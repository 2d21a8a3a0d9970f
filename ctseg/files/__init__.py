"""What lies on disk: where voxels lie, the formats, which files make a case, whole files or none."""
