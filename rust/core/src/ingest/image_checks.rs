//! The checks of a record's images, wherever they are.

use std::borrow::Cow;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::container::{Block, Context, Parsed};
use super::header::{self, Fault, Header, Rules};
use super::images::{ImageFolder, ImageKey, Memo};
use super::picture::Picture;
use super::record::Refusal;
use super::reject::{Reason, Rejection, shown};
use super::{CheckImages, IngestOptions};
use crate::{Error, Result};

/// Images that a store is asked for side by side: what it takes is the time until an answer comes.
const REQUESTS: usize = 32;

/// What all records of a pool share for the checks of their images.
pub(super) struct ImageChecks {
    folder: Option<ImageFolder>,
    rules: Option<Rules>,
    /// Carried images that have been decoded; reading a header is cheaper than looking it up here.
    decoded: Memo<Option<Arc<Fault>>>,
    /// Threads that wait for the answers of a store, where the images are in one.
    requests: Option<ThreadPool>,
}

impl ImageChecks {
    pub(super) fn open(options: &IngestOptions) -> Result<Self> {
        let rules = Rules {
            max_pixels: options.max_image_pixels,
            decode: options.check_images == CheckImages::Decode,
        };
        let rules = (options.check_images != CheckImages::None).then_some(rules);
        let open = |images| ImageFolder::open(images, rules);
        let folder = options.images.as_ref().map(open).transpose()?;
        let requests = || {
            let threads = ThreadPoolBuilder::new().num_threads(REQUESTS).build();
            threads.map_err(|error| {
                Error::Argument(format!("--images: cannot start threads for it: {error}"))
            })
        };
        let is_remote = folder.as_ref().is_some_and(ImageFolder::is_remote);
        Ok(Self {
            folder,
            rules,
            decoded: Memo::new(),
            requests: is_remote.then(requests).transpose()?,
        })
    }

    /// Parses and checks a block; a store is asked for all of its images first, many at a time.
    pub(super) fn parse(&self, block: &dyn Block, context: &Context<'_>) -> Result<Parsed> {
        if let (Some(folder), Some(requests)) = (&self.folder, &self.requests) {
            let wanted = Mutex::default();
            let looking = Context {
                wanted: Some(&wanted),
                ..context.clone()
            };
            // What is wrong with the block itself is found again below.
            let _ = block.parse(&looking);
            let mut paths = wanted.into_inner().unwrap_or_else(PoisonError::into_inner);
            paths.sort_unstable();
            paths.dedup();
            let look = |path: &String| {
                context.observer.check()?;
                match folder.resolve(Cow::Borrowed(path)) {
                    Err(Refusal::Failed(error)) => Err(error),
                    // Kept by the folder until the block is parsed.
                    _ => Ok(()),
                }
            };
            requests.install(|| paths.par_iter().try_for_each(look))?;
        }
        block.parse(context)
    }

    /// Returns the image as it goes into the pool.
    pub(super) fn check<'a>(
        &self,
        picture: Picture<'a>,
        context: &Context<'_>,
    ) -> std::result::Result<Picture<'a>, Refusal> {
        let key = || picture.key(context.file);
        let (fault, name) = match &picture {
            Picture::Path(path, _) => {
                if let Some(wanted) = context.wanted {
                    let mut wanted = wanted.lock().unwrap_or_else(PoisonError::into_inner);
                    wanted.push(path.clone().into_owned());
                    return Ok(picture);
                }
                let is_web = path.starts_with("http://") || path.starts_with("https://");
                let is_inside = |folder: &ImageFolder| folder.inside(path).is_some();
                if is_web && !self.folder.as_ref().is_some_and(is_inside) {
                    let detail = format!(
                        "image '{}' is a web address; download it into the images folder and name the file",
                        shown(path)
                    );
                    return Err(Rejection::new(Reason::ImageMissing, None, detail).into());
                }
                let Some(folder) = &self.folder else {
                    return Err(Refusal::NeedsImages(shown(path)));
                };
                let (path, key) = folder.resolve(path.clone())?;
                return Ok(Picture::Path(path, key));
            }
            Picture::Bytes { name, bytes } => (
                self.fault(key, |rules| header::check_bytes(bytes, rules)),
                name,
            ),
            Picture::Range {
                name,
                offset,
                length,
            } => {
                let check =
                    |rules: &Rules| header::check_range(context.path, *offset, *length, rules);
                (self.fault(key, check), name)
            }
        };
        match fault {
            None => Ok(picture),
            Some(fault) => {
                let name = name.as_deref().map(|name| format!(" '{}'", shown(name)));
                let detail = format!("image{} {fault}", name.unwrap_or_default());
                Err(Rejection::new(reason(*fault), None, detail).into())
            }
        }
    }

    fn fault(
        &self,
        key: impl Fn() -> ImageKey,
        check: impl Fn(&Rules) -> std::result::Result<Header, Fault>,
    ) -> Option<Arc<Fault>> {
        let rules = self.rules.as_ref()?;
        let find = || check(rules).err().map(Arc::new);
        if rules.decode {
            let Ok(fault) = self
                .decoded
                .get_or_insert(key(), || Ok::<_, Infallible>(find()));
            fault
        } else {
            find()
        }
    }
}

/// Returns the code of a fault.
pub(super) fn reason(fault: Fault) -> Reason {
    match fault {
        Fault::NotAFile => Reason::ImageMissing,
        Fault::Unreadable(_) => Reason::ImageUnreadable,
        Fault::Empty => Reason::ImageEmpty,
        Fault::Unknown | Fault::Svg => Reason::ImageUnknown,
        Fault::Damaged(_) => Reason::ImageDamaged,
        Fault::TooManyPixels { .. } => Reason::ImageTooLarge,
        Fault::CutOff(_) => Reason::ImageCutOff,
    }
}
