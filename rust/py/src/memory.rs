//! The process ends at once when memory runs out.
//!
//! Rust's own handler takes locks and may print a backtrace, for which it asks for more memory; a panic that is
//! being told of holds the same locks. A process that waits for itself like that does not end. Here nothing is
//! taken and nothing asked for: a message, then abort, which loses no more than a kill does.

use std::alloc::{GlobalAlloc, Layout, System};

#[global_allocator]
static ALLOCATOR: Ending = Ending;

/// The system's allocator; a request that it refuses ends the process.
struct Ending;

// SAFETY: every call goes to the system's allocator as it came, and so does what it returns.
unsafe impl GlobalAlloc for Ending {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc`.
        given(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: likewise.
        given(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: likewise.
        given(unsafe { System.realloc(block, layout, size) }, size)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: likewise.
        unsafe { System.dealloc(block, layout) }
    }
}

#[inline]
fn given(block: *mut u8, size: usize) -> *mut u8 {
    if block.is_null() {
        end(size);
    }
    block
}

/// The standard error stream, which the C library of Windows numbers too but does not name.
const STDERR: i32 = 2;

#[cold]
fn end(size: usize) -> ! {
    let mut digits = [0; 20];
    for text in [
        b"mllm-selector: out of memory, " as &[u8],
        decimal(size, &mut digits),
        b" bytes more were refused; what is finished is kept, the same command goes on where it stopped\n",
    ] {
        // SAFETY: the pointer and the length are those of a slice.
        unsafe { libc::write(STDERR, text.as_ptr().cast(), text.len() as _) };
    }
    // SAFETY: has no preconditions.
    unsafe { libc::abort() }
}

/// Writes a number's digits to the end of `digits` and returns them.
fn decimal(mut number: usize, digits: &mut [u8; 20]) -> &[u8] {
    let mut first = digits.len();
    loop {
        first -= 1;
        digits[first] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return &digits[first..];
        }
    }
}
