//! Pictures.

pub mod bars;
pub mod curve;
pub mod draft;
pub mod plots;
pub mod samples;
pub mod sheet;
