"""Work split over devices: so far the schedules of a pipeline."""
