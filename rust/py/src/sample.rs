//! Bindings of grouped sampling.

use mllm_selector_core as core;
use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::call::UsageError;
use crate::convert::{Matrix, computed, numbers, rows_of, usage};

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(strata, module)?)?;
    module.add_function(wrap_pyfunction!(random_groups, module)?)?;
    module.add_function(wrap_pyfunction!(check_limits, module)?)?;
    module.add_function(wrap_pyfunction!(allocate, module)?)?;
    module.add_function(wrap_pyfunction!(grouped_sample, module)?)
}

#[pyfunction]
fn strata<'py>(
    py: Python<'py>,
    necessity: PyReadonlyArray1<'py, f32>,
    count: usize,
) -> PyResult<Bound<'py, PyArray1<u32>>> {
    Ok(core::strata(necessity.as_slice()?, count).into_pyarray(py))
}

#[pyfunction]
fn random_groups(py: Python<'_>, size: usize, count: usize, seed: u64) -> Bound<'_, PyArray1<u32>> {
    core::random_groups(size, count, seed).into_pyarray(py)
}

/// Name, floor and ceiling of a source.
type Limit = (String, u64, u64);

fn limits_of(limits: Vec<Limit>) -> Vec<core::Limit> {
    let limit = |(name, floor, ceiling)| core::Limit {
        name,
        floor,
        ceiling,
    };
    limits.into_iter().map(limit).collect()
}

#[pyfunction]
#[pyo3(signature = (budget, limits, available, taken=None))]
fn check_limits(
    budget: u64,
    limits: Vec<Limit>,
    available: Vec<u64>,
    taken: Option<Vec<u64>>,
) -> PyResult<()> {
    let taken = taken.unwrap_or_else(|| vec![0; available.len()]);
    let stocks: Vec<_> = available
        .into_iter()
        .zip(taken)
        .map(|(available, taken)| core::Stock { taken, available })
        .collect();
    core::check_limits(budget, &limits_of(limits), &stocks).map_err(usage)
}

/// Shares `budget` out by (weight, size, floor, capacity) of each group.
#[pyfunction]
fn allocate(budget: u64, claims: Vec<(f64, u64, u64, u64)>) -> PyResult<Vec<u64>> {
    let claims: Vec<_> = claims
        .into_iter()
        .map(|(weight, size, floor, capacity)| core::Claim {
            weight,
            size,
            floor,
            capacity,
        })
        .collect();
    let least: u64 = claims.iter().map(|claim| claim.floor).sum();
    let most: u64 = claims.iter().map(|claim| claim.capacity).sum();
    if !(least..=most).contains(&budget) {
        return Err(UsageError::new_err(format!(
            "budget: {budget} cannot be shared out: the groups take {least} to {most}"
        )));
    }
    Ok(core::allocate(budget, &claims))
}

#[pyfunction]
#[pyo3(signature = (
    necessity, groups, included, embeddings, index, *, sources, limits, budget, share, within, trim, skip_duplicates,
    seed, threads, progress
))]
#[expect(
    clippy::too_many_arguments,
    reason = "keyword arguments of a Python function"
)]
fn grouped_sample<'py>(
    py: Python<'py>,
    necessity: PyReadonlyArray1<'py, f32>,
    groups: PyReadonlyArray1<'py, u32>,
    included: PyReadonlyArray1<'py, i64>,
    embeddings: Option<&Bound<'py, PyList>>,
    index: Option<PyReadonlyArray1<'py, i64>>,
    sources: Option<PyReadonlyArray1<'py, u32>>,
    limits: Vec<Limit>,
    budget: usize,
    share: &str,
    within: &str,
    trim: f64,
    skip_duplicates: Option<f64>,
    seed: u64,
    threads: Option<usize>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyArray1<i64>>> {
    let options = core::GroupedOptions {
        budget,
        share: share_of(share)?,
        within: within_of(within)?,
        trim,
        skip_duplicates,
        seed,
    };
    let matrix = embeddings
        .map(|parts| Matrix::new(parts, index))
        .transpose()?;
    let rows = matrix.as_ref().map(Matrix::rows).transpose()?;
    let included = rows_of(&included)?;
    let of_source = limits_of(limits);
    let limits = match &sources {
        Some(sources) => Some(core::Limits {
            sources: sources.as_slice()?,
            of_source: &of_source,
        }),
        None => None,
    };
    let candidates = core::Candidates {
        necessity: necessity.as_slice()?,
        groups: groups.as_slice()?,
        included: &included,
        embeddings: rows.as_ref(),
        limits,
    };
    let chosen = computed(py, threads, progress, |observer| {
        core::grouped_sample(&candidates, &options, observer)
    })?;
    Ok(numbers(py, chosen))
}

fn share_of(name: &str) -> PyResult<core::Share> {
    match name {
        "size-necessity" => Ok(core::Share::SizeNecessity),
        "necessity" => Ok(core::Share::Necessity),
        "size" => Ok(core::Share::Size),
        "equal" => Ok(core::Share::Equal),
        _ => Err(UsageError::new_err(format!(
            "share: '{name}' is not one of size-necessity, necessity, size, equal"
        ))),
    }
}

fn within_of(name: &str) -> PyResult<core::Within> {
    match name {
        "uniform" => Ok(core::Within::Uniform),
        "top" => Ok(core::Within::Top),
        "weighted" => Ok(core::Within::Weighted),
        "k-center" => Ok(core::Within::KCenter),
        "facility-location" => Ok(core::Within::FacilityLocation),
        "middle" => Ok(core::Within::Middle),
        _ => Err(UsageError::new_err(format!(
            "within: '{name}' is not one of uniform, top, weighted, k-center, facility-location, middle"
        ))),
    }
}
