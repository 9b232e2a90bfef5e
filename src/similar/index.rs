//! Few of many rows, by a graph that is kept beside the files.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde::{Deserialize, Serialize};
use usearch::{Index as Graph, IndexOptions, MetricKind, ScalarKind};

use super::read::{Rows, Seen, seen, unreadable};
use super::{By, Embeddings, Neighbour, SimilarError};
use crate::learner;

/// Folder of the index, below that of the embeddings. Readers of Hive's folders pass it over.
const FOLDER: &str = "_similar";
/// Rows between two reports of progress.
const REPORTED: usize = 1_000;

/// How hard the graph is worked at: HNSW's M, ef of construction and ef of search.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Effort {
    pub connections: usize,
    pub building: usize,
    pub searching: usize,
}

impl Default for Effort {
    /// What `benches/similar.rs` finds more than 0.95 of the true ten nearest with.
    fn default() -> Self {
        Self { connections: 16, building: 128, searching: 128 }
    }
}

/// A graph of neighbours over embeddings of unit length (HNSW).
pub struct Index {
    graph: Graph,
}

impl Index {
    /// An index of `values`, `[rows, width]`; `progress` is told how many rows are in. All cores
    /// build it; which of nearly equal neighbours it finds depends on their order.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn build(
        values: &[f32],
        width: usize,
        effort: Effort,
        progress: &(dyn Fn(usize) + Sync),
    ) -> Result<Self, SimilarError> {
        let graph = graph(width, effort)?;
        let rows = values.len() / width.max(1);
        let cores = learner::cores();
        graph.reserve_capacity_and_threads(rows, cores).map_err(failed)?;
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            let builders: Vec<_> = (0..cores)
                .map(|_| {
                    scope.spawn(|| {
                        loop {
                            let row = next.fetch_add(1, Ordering::Relaxed);
                            let Some(value) = values.get(row * width..(row + 1) * width) else {
                                return Ok(());
                            };
                            graph.add(row as u64, value).map_err(failed)?;
                            if row.is_multiple_of(REPORTED) {
                                progress(row);
                            }
                        }
                    })
                })
                .collect();
            builders.into_iter().try_for_each(|builder| match builder.join() {
                Ok(built) => built,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })?;
        Ok(Self { graph })
    }

    /// The `most` rows near to `query` that are found and `may_be` counted, the nearest first.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn nearest(
        &self,
        query: &[f32],
        most: usize,
        may_be: impl Fn(usize) -> bool,
    ) -> Result<Vec<Neighbour>, SimilarError> {
        let found =
            self.graph.filtered_search(query, most, |row| may_be(row as usize)).map_err(failed)?;
        let pairs = found.keys.iter().zip(&found.distances);
        Ok(pairs
            .map(|(row, distance)| Neighbour { row: *row as usize, cosine: 1.0 - distance })
            .collect())
    }

    /// The embedding of a row.
    ///
    /// # Errors
    /// If there is no such row.
    pub fn embedding(&self, row: usize) -> Result<Vec<f32>, SimilarError> {
        let mut values = vec![0.0; self.graph.dimensions()];
        match self.graph.get(row as u64, &mut values).map_err(failed)? {
            0 => Err(SimilarError::Index(format!("has no row {row}"))),
            _ => Ok(values),
        }
    }
}

/// An index on disk with the rows that it is of.
pub struct Kept {
    pub embeddings: Embeddings,
    pub index: Index,
}

/// What is beside the graph.
#[derive(Serialize, Deserialize)]
struct Description {
    files: Vec<Seen>,
    version: Option<u64>,
    effort: Effort,
    width: usize,
    rows: Rows,
}

impl Kept {
    /// Number of embeddings that a kept index of the files as they are now holds; `None` where
    /// there is none.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn open(folder: &Path, by: By, version: Option<u64>) -> Result<Option<Self>, SimilarError> {
        let (graph_path, description_path) = paths(folder, by);
        let Ok(bytes) = fs::read(description_path) else { return Ok(None) };
        // One that is damaged, or of another version of this program, is made anew.
        let Ok(description) = postcard::from_bytes::<Description>(&bytes) else { return Ok(None) };
        let is_current = description.files == seen(folder, by)?
            && description.version == version
            && description.effort == Effort::default();
        let graph = graph(description.width, description.effort)?;
        let Some(path) = graph_path.to_str().filter(|_| is_current) else { return Ok(None) };
        if graph.view(path).is_err() || graph.size() != description.rows.len() {
            return Ok(None);
        }
        let embeddings = Embeddings::without_values(description.rows, description.width);
        Ok(Some(Self { embeddings, index: Index { graph } }))
    }

    /// Builds an index of `embeddings`, read from `folder`, and keeps it there.
    ///
    /// # Errors
    /// If it cannot be built or written.
    pub fn build(
        folder: &Path,
        by: By,
        version: Option<u64>,
        embeddings: Embeddings,
        progress: &(dyn Fn(usize) + Sync),
    ) -> Result<Self, SimilarError> {
        // Before the index: a file that comes meanwhile makes it outdated.
        let files = seen(folder, by)?;
        let (effort, width) = (Effort::default(), embeddings.width());
        let index = Index::build(embeddings.values(), width, effort, progress)?;
        let (graph_path, description_path) = paths(folder, by);
        let parent = folder.join(FOLDER);
        fs::create_dir_all(&parent).map_err(|error| unreadable(&parent, &error))?;
        // Without its description an index is none: one that is written halfway is not used.
        let _ = fs::remove_file(&description_path);
        let path = graph_path
            .to_str()
            .ok_or_else(|| unreadable(&graph_path, &"expected a path in UTF-8"))?;
        index.graph.save(path).map_err(failed)?;
        let rows = embeddings.rows.clone();
        let description = Description { files, version, effort, width, rows };
        let bytes = postcard::to_stdvec(&description)
            .map_err(|error| SimilarError::Index(error.to_string()))?;
        fs::write(&description_path, bytes)
            .map_err(|error| unreadable(&description_path, &error))?;
        Ok(Self { embeddings, index })
    }
}

fn paths(folder: &Path, by: By) -> (PathBuf, PathBuf) {
    let path = |ending: &str| folder.join(FOLDER).join(format!("{}.{ending}", by.name()));
    (path("graph"), path("rows"))
}

fn graph(width: usize, effort: Effort) -> Result<Graph, SimilarError> {
    let options = IndexOptions {
        dimensions: width,
        // Of unit vectors, one less the cosine.
        metric: MetricKind::IP,
        quantization: ScalarKind::F32,
        connectivity: effort.connections,
        expansion_add: effort.building,
        expansion_search: effort.searching,
        multi: false,
    };
    Graph::new(&options).map_err(failed)
}

fn failed(reason: impl std::fmt::Display) -> SimilarError {
    SimilarError::Index(reason.to_string())
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_pcg::Pcg64Mcg;

    use super::super::nearest;
    use super::*;

    const WIDTH: usize = 16;

    /// Unit vectors around `rows / 50` centres.
    fn clustered(rows: usize) -> Vec<f32> {
        let mut rng = Pcg64Mcg::seed_from_u64(5);
        let centres: Vec<f32> =
            (0..rows / 50 * WIDTH).map(|_| rng.random_range(-1.0..1.0)).collect();
        let mut values = Vec::with_capacity(rows * WIDTH);
        for row in 0..rows {
            let centre = &centres[row % (rows / 50) * WIDTH..][..WIDTH];
            let value: Vec<f32> =
                centre.iter().map(|value| value + rng.random_range(-0.2..0.2)).collect();
            let length = value.iter().map(|value| value * value).sum::<f32>().sqrt();
            values.extend(value.iter().map(|value| value / length));
        }
        values
    }

    #[test]
    fn the_index_finds_nearly_all_of_the_true_neighbours_and_none_that_may_not_be() {
        let values = clustered(5_000);
        let index = Index::build(&values, WIDTH, Effort::default(), &|_| {}).unwrap();
        let (mut hits, queries) = (0, 50);
        for query in 0..queries {
            let vector = &values[query * WIDTH..][..WIDTH];
            let truth = nearest(&values, WIDTH, vector, 10, |_, row| row != query);
            let found = index.nearest(vector, 10, |row| row != query).unwrap();
            assert!(found.iter().all(|near| near.row != query));
            assert!(found.windows(2).all(|pair| pair[0].cosine >= pair[1].cosine));
            hits += found.iter().filter(|near| truth[0].iter().any(|t| t.row == near.row)).count();
        }
        assert!(hits >= queries * 10 * 95 / 100, "{hits} of {}", queries * 10);
        assert_eq!(index.embedding(7).unwrap(), values[7 * WIDTH..][..WIDTH]);
    }
}
