//! Pool reading and diverse selection, without Python.
//!
//! Data flows from [`ingest`] (the user's file to an Arrow pool) through [`pool`] (memory-mapped reading)
//! to the selection algorithms. Beside them, pictures are resized for scoring. Nothing here prints, reads the
//! environment or owns a global thread pool.

mod compression;
mod coverage;
mod dedup;
mod error;
mod facility;
mod files;
mod groupwise;
mod hash;
pub mod ingest;
mod kcenter;
mod kmeans;
mod linalg;
mod neighbours;
mod observe;
mod penalty;
pub mod pool;
mod projection;
mod recall;
mod representatives;
mod resample;
mod rng;
mod sampling;
pub mod writeback;

pub use compression::Compression;
pub use coverage::{Near, coverage, near_rows};
pub use dedup::near_duplicates;
pub use error::{Error, Result};
pub use facility::{
    FacilityLocation, FacilityOptions, facility_location, facility_location_of_rows,
};
pub use groupwise::{MmdOptions, greedy_mmd, kernel_sums, redundancy, typicality};
pub use hash::hash_file;
pub use kcenter::{First, KCenter, KCenterOptions, k_center};
pub use kmeans::{KMeans, KMeansOptions, kmeans};
pub use linalg::{Chunk, Metric, Rows, Simd};
pub use neighbours::{Neighbours, near_duplicate_pairs, nearest_neighbours};
pub use observe::Observer;
pub use penalty::{PenaltyOptions, penalised};
pub use projection::{Axes, principal_axes, project};
pub use recall::recall;
pub use representatives::{NearDuplicates, near_duplicates_by_pairs};
pub use resample::{Filter, resample_height, resample_width};
pub use sampling::{
    Bound, Candidates, Claim, GroupedOptions, Limit, Limits, Share, Stock, Within, allocate,
    allocate_within, check_limits, grouped_sample, random_groups, strata,
};
