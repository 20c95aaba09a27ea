//! Geometry against a naive model.
