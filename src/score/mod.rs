//! Surprise, distance and residual become one calibrated verdict.
