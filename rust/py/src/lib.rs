//! Python bindings: convert arguments, release the GIL, map errors. No algorithm lives here.

mod call;
mod convert;
mod groupwise;
mod io;
mod memory;
mod neighbours;
mod overview;
mod picture;
mod pool;
mod rows;
mod sample;
mod select;
mod store;

use pyo3::prelude::*;

#[pymodule(gil_used = false)]
fn _internal(module: &Bound<'_, PyModule>) -> PyResult<()> {
    io::register(module)?;
    pool::register(module)?;
    select::register(module)?;
    neighbours::register(module)?;
    groupwise::register(module)?;
    overview::register(module)?;
    picture::register(module)?;
    sample::register(module)
}
