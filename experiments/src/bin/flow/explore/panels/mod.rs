//! The pictures of the page, one a file: each has a function `panel`, which says what moves it, and one that draws it.

pub mod attributes;
pub mod bits;
pub mod density;
pub mod layers;
pub mod levels;
pub mod mix;
pub mod points;
pub mod samples;
