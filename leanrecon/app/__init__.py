"""What people touch: the command line, the doctor, the notebook magic and the plan's table."""
