//! The contrastive learner: encoder, momentum encoder, queue and InfoNCE.
