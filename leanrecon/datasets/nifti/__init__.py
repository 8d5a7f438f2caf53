"""Any lab's betas in NIfTI files."""
