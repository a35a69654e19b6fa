//! Pictures.

pub mod draft;
pub mod plots;
pub mod samples;
pub mod sheet;
