//! Images that are not files of this machine.

use std::fmt;

use crate::Result;

/// A folder of images that is reached over a network, or in another way that the core knows nothing of.
pub trait ImageStore: fmt::Debug + Send + Sync {
    /// Returns the folder's address without a slash at its end; an image's own address may begin with it.
    fn url(&self) -> &str;

    /// Returns the first `most` bytes of an image, all of them if None, or nothing if there is no such image.
    ///
    /// Called from many threads at a time.
    ///
    /// # Errors
    ///
    /// If it cannot be told what is there. That ends the whole run: it says nothing of the image.
    fn read(&self, path: &str, most: Option<usize>) -> Result<Option<Vec<u8>>>;
}
