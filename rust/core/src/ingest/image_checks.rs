//! The checks of a record's images, wherever they are.

use std::sync::Arc;

use super::container::Context;
use super::header::{self, Fault, Header, Rules};
use super::images::{ImageFolder, ImageKey, Memo};
use super::picture::Picture;
use super::record::Refusal;
use super::reject::{Reason, Rejection, shown};
use super::{CheckImages, IngestOptions};
use crate::Result;

/// What all records of a pool share for the checks of their images.
pub(super) struct ImageChecks {
    folder: Option<ImageFolder>,
    rules: Option<Rules>,
    /// Carried images that have been decoded; reading a header is cheaper than looking it up here.
    decoded: Memo<Option<Arc<Fault>>>,
}

impl ImageChecks {
    pub(super) fn open(options: &IngestOptions) -> Result<Self> {
        let rules = Rules {
            max_pixels: options.max_image_pixels,
            decode: options.check_images == CheckImages::Decode,
        };
        let rules = (options.check_images != CheckImages::None).then_some(rules);
        let open = |folder| ImageFolder::open(folder, rules);
        Ok(Self {
            folder: options.images.as_deref().map(open).transpose()?,
            rules,
            decoded: Memo::new(),
        })
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
                if path.starts_with("http://") || path.starts_with("https://") {
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
            self.decoded.get_or_insert(key(), find)
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
