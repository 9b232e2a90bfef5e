//! Labelled recordings: prequential scores and the measures they are judged by.
