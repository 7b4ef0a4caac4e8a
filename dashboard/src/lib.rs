//! Who talks to whom: from the kernel's connections to the page in the browser.
//!
//! Pure, from the bottom: [`flows`] sums connections up, [`titles`] says what people call a container, [`graph`] makes
//! the picture of the mesh from what its members tell, [`delta`] says what changed between two pictures, [`history`]
//! keeps the last quarter of an hour, [`login`] and [`gate`] decide who may see it. Around them two shells: [`hub`]
//! hands each picture to everybody who looks, rendered once, and [`serve`] is the web server with the page of [`page`]
//! in it.
//!
//! Everything here only looks: no request changes anything but the login of who sends it.

pub mod bounded;
pub mod flows;
mod titles;

pub mod graph;

mod delta;
mod history;

mod gate;
mod login;

mod hub;
mod page;

mod serve;

pub use gate::is_from_here;
pub use serve::{Dashboard, Identity};
