"""What a run leaves in its workdir, and how runs are shown."""
