//! Experiments with the flows of the crate `flows`: recipes, data sets, training, evaluation, and the folder of a run.
//!
//! Files form layers without a circle; a file uses items of lower layers only:
//!
//! 0. [`untrusted`]: reading files whose contents nobody has checked; [`suggest`]: what a name that does not exist was meant for;
//!    [`shell`]: a command as it is typed.
//! 1. [`data`]: data sets. Its types come first, then one reader a file, then the table of all of them.
//! 2. [`recipe`]: the settings of an experiment, [`sweep`]: of many; [`limits`]: whether this machine's memory can hold them.
//!    [`ranks`]: the processes that work together.
//! 3. [`batches`]: examples as a flow takes them; [`evaluate`]: bits/dim of a split; [`codecs`]: what PNG, WebP, JPEG XL
//!    and a Gaussian need for the same images; [`mixture`]: Gaussians fitted to vectors; [`mod@sample`]: samples.
//! 4. [`run_dir`], [`lock`]: the folder of a run; [`events`], [`checkpoint`], [`metrics`], [`summary`]: what is
//!    written there.
//! 5. [`train`]: from a recipe and its data to the weights of a run.
//!
//! Nothing here parses a command line, draws a picture or shows progress: the program `flow` (`bin/flow`) does, and
//! receives what happens through [`train::Progress`] and [`flows::hub::Observer`].

pub mod batches;
pub mod checkpoint;
pub mod codecs;
pub mod data;
pub mod evaluate;
pub mod events;
pub mod limits;
pub mod lock;
pub mod metrics;
pub mod mixture;
pub mod ranks;
pub mod recipe;
pub mod run_dir;
pub mod sample;
pub mod shell;
pub mod suggest;
pub mod summary;
pub mod sweep;
#[cfg(test)]
mod testing;
pub mod train;
pub mod untrusted;
