//! Threads, bounded channels, epochs and shutdown: everything that the stages need not know.
