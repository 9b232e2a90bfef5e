//! Metric names and logging.
