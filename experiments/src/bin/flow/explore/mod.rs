//! The page of `flow explore`: a server on loopback, the pictures that it answers with, and the page as plain files.
//!
//! Files form layers without a circle:
//!
//! 1. `request`: what a browser asks for, checked; `answer`: what it is told, as JSON; `strip`: film strips.
//! 2. `explorer`: the model with its data, the latents of images that were asked for lately, and the directions of attributes,
//!    which `cached` keeps beside the weights.
//! 3. `panel`: what a picture of the page is; `panels`: one picture a file.
//! 4. `table`: all of them by name, for the kind of examples that the model takes.
//! 5. `worker`: the thread that owns the model and answers one request after the other; `server`: HTTP. `export`: a fixed set
//!    of answers as files.
//!
//! The page holds all of its state, and each request says everything that its picture depends on: windows do not disturb each
//! other, and an exported page is the same page with a table of answers in the server's place. An image is a number of the
//! data, or a PNG in the model's shape that the page has been given: a sample, or a file that was dropped onto it.
//!
//! A picture is drawn by the functions of the command that it shows, with the same noise, so that the command makes the same
//! picture.

mod answer;
mod cached;
mod explorer;
mod export;
mod panel;
mod panels;
mod request;
mod server;
mod strip;
mod table;
mod worker;

pub use explorer::Explorer;
pub use export::export;
pub use server::{listen, serve};
pub use worker::start;
