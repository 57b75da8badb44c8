//! How a long call says how far it is, and how it is told to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::{Error, Result};

/// Shared between a long call and whoever waits for it.
///
/// The call counts its work and checks now and then whether to go on, from any of its threads; both cost
/// one relaxed atomic access. The one who waits reads the counts and may stop the call from another thread.
///
/// ```
/// # use mllm_selector_core::{Observer, Result};
/// fn long_call(rows: &[f32], observer: &Observer) -> Result<f32> {
///     observer.expect(rows.len() as u64);
///     let mut sum = 0.0;
///     for block in rows.chunks(1024) {
///         observer.check()?;
///         sum += block.iter().sum::<f32>();
///         observer.advance(block.len() as u64);
///     }
///     Ok(sum)
/// }
///
/// let observer = Observer::default();
/// long_call(&[1.0; 5000], &observer)?;
/// assert_eq!(observer.progress(), (5000, 5000));
/// # Ok::<(), mllm_selector_core::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct Observer {
    done: AtomicU64,
    total: AtomicU64,
    stopped: Arc<AtomicBool>,
}

impl Observer {
    /// Sets how much work there is, in any unit.
    pub fn expect(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
    }

    /// Counts work done.
    pub fn advance(&self, work: u64) {
        self.done.fetch_add(work, Ordering::Relaxed);
    }

    /// Returns the work done and the work in all (0 until known).
    pub fn progress(&self) -> (u64, u64) {
        (
            self.done.load(Ordering::Relaxed),
            self.total.load(Ordering::Relaxed),
        )
    }

    /// Returns an observer for a part of the call: it stops with this one and counts for itself.
    pub(crate) fn part(&self) -> Self {
        Self {
            stopped: Arc::clone(&self.stopped),
            ..Self::default()
        }
    }

    /// Asks the call to stop.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Fails once the call has been asked to stop; to be called at least every 100 ms.
    pub fn check(&self) -> Result<()> {
        if self.stopped.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        Ok(())
    }
}
