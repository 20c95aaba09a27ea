//! Kernels against each other and against a naive model.
