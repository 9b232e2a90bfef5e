//! One commit point for positions, windows, model and calibration.
