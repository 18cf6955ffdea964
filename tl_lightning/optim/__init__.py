"""Parameter groups by stage and learning-rate schedules."""
