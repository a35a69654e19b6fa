//! Results as text, tables and HTML.

pub mod groups;
pub mod html;
pub mod measured;
pub mod table;
