"""From a trained nnU-Net to a proven entry of a model repository: export, parity gate, build."""
