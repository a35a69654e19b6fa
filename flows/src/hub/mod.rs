//! The Hugging Face hub: loading a model from `user/name`, and publishing a folder of weights there.
//!
//! ```no_run
//! use candle_core::Device;
//! use flows::hub::{self, Revision};
//!
//! let model = hub::from_pretrained("user/name", Revision::default(), &Device::Cpu)?;
//! let same = hub::from_pretrained("user/name", Revision::new("v1.0")?, &Device::Cpu)?;
//! let local = hub::from_pretrained("weights/faces-glow-small", Revision::default(), &Device::Cpu)?;
//! # let _ = (model, same, local);
//! # Ok::<(), candle_core::Error>(())
//! ```
//!
//! The cache is the Python library's (`$HF_HOME/hub`), so that both find what the other has fetched. A revision is first
//! resolved to its commit, and all files are taken at that commit, so that two states are never mixed.
//! The branch's name in the cache moves to the commit when everything is there and verified.
//!
//! The client underneath is hf-hub 1.0.0. What it leaves to its caller, or gets wrong, is handled here:
//!
//! | fault | what happens |
//! |---|---|
//! | a 503's body, a short body or a flipped bit is stored as the file and used from then on | each file is hashed against the name of its blob and the listing of its commit, on every call; a wrong one is fetched again by force, three times in all, then removed |
//! | a missing repository, revision and file look the same | the hub is asked which of them is there |
//! | `HF_HUB_OFFLINE` is ignored | then only the cache is used |
//! | empty variables, `~` and line ends in tokens are taken literally | variables are read here: `HF_ENDPOINT`, `HF_HUB_CACHE`, `HF_HOME`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_DISABLE_IMPLICIT_TOKEN`, `HF_HUB_OFFLINE` |
//! | no request has a time limit, and dead storage is tried for minutes | [`Settings::patience`] without a byte ends the call |
//! | a second program waits ten seconds for the cache's lock, then fails | pulls of one repository wait for each other |
//! | a retried commit can be made twice; pushes can overwrite each other | a commit names its parent; where the answer got lost, the hub is asked what it has |
//! | large files go inside the commit where the hub offers no xet storage | so they do, a third larger; a hub that does not take them says so, and nothing is published |
//! | folders are uploaded with hidden files and without what is a link | named files only, in one commit |
//! | an existing public repository is taken for the private one that was asked for | it is refused |
//!
//! Where the hub cannot be reached and the cache has the revision, the cache is used, with a warning. Errors are one sentence.
mod call;
mod client;
mod files;
mod hash;
mod pull;
mod push;
mod repository;
mod settings;
mod text;
mod types;

pub use client::Hub;
pub use files::CARD;
pub use pull::{from_pretrained, pull};
pub use push::{PushFile, PushOptions, Pushed, plan, push};
pub use repository::{Repository, Revision};
pub use settings::Settings;
pub use types::{Observer, Snapshot, Transfer};
