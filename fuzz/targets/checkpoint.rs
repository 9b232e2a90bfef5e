//! Checkpoints: whatever bytes of what was saved are others, reading it back does not panic, and a
//! file that is not as it was written is refused.
//!
//! An input edits what is saved here: a byte that says what is read, then three bytes an edit, its
//! position and the new byte. Only files are guarded by a checksum, so the state within is read
//! without one.

#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use contrastream::checkpoint::{Checkpoint, Part, SavedWindows, Store};
use contrastream::config::Pipeline;
use contrastream::runtime::Core;
use contrastream::source::Lane;
use contrastream::window::{Segmenter, WindowShape};
use libfuzzer_sys::fuzz_target;

const ID: &str = "00000000000000000001-0000000000000001";

/// A small pipeline, what it saves, and where.
struct Saved {
    pipeline: Pipeline,
    store: Store,
    path: PathBuf,
    file: Vec<u8>,
    checkpoint: Vec<u8>,
    shape: WindowShape,
    windows: SavedWindows,
    core: Vec<u8>,
}

fuzz_target!(|data: &[u8]| {
    static SAVED: OnceLock<Saved> = OnceLock::new();
    let saved = SAVED.get_or_init(save);
    let Some((what, edits)) = data.split_first() else { return };
    match what % 4 {
        0 => {
            let bytes = edited(&saved.file, edits);
            fs::write(&saved.path, &bytes).expect("a file of the folder");
            let loaded = saved.store.load(ID, "plant[0]");
            assert_eq!(loaded.is_ok(), bytes == saved.file, "{loaded:?}");
        }
        1 => {
            let bytes = edited(&saved.checkpoint, edits);
            if let Ok(checkpoint) = postcard::from_bytes::<Checkpoint>(&bytes) {
                let again = postcard::to_stdvec(&checkpoint).expect("what was read can be written");
                assert_eq!(postcard::from_bytes(&again), Ok(checkpoint));
            }
        }
        2 => {
            let lane = edited(&saved.windows.lane, edits);
            let windows = SavedWindows { lane, ..saved.windows.clone() };
            let lane = Lane::new("plant", 0);
            drop(Segmenter::load(lane, &saved.shape, 4, &windows, &saved.store));
        }
        _ => drop(Core::load(&edited(&saved.core, edits), &saved.pipeline)),
    }
});

fn edited(whole: &[u8], edits: &[u8]) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    let (edits, rest) = edits.as_chunks::<3>();
    for [high, low, byte] in edits {
        let at = usize::from(u16::from_be_bytes([*high, *low])) % bytes.len();
        bytes[at] = *byte;
    }
    // A byte or two that are left cut the end off.
    bytes.truncate(
        bytes.len() - rest.iter().map(|byte| usize::from(*byte)).sum::<usize>() % bytes.len(),
    );
    bytes
}

fn save() -> Saved {
    let folder = std::env::temp_dir().join(format!("contrastream-fuzz-{}", std::process::id()));
    let text = format!(
        "name = \"p\"\nsource = {{ kind = \"generator\" }}\n\
         records = {{ key = \"k\", time = \"t\", channels = [\"a\"] }}\n\
         windows = {{ length = 2, stride = 1 }}\n\
         model = {{ encoder = \"mlp\", hidden = 2, embedding = 2, projection = [2], queue = 4 }}\n\
         training = {{ batch = 2 }}\npairs = {{ pool = 2 }}\ncheckpoint = {{ store = {folder:?} }}\n"
    );
    let pipeline = Pipeline::from_toml(&text, "fuzz.toml", &[]).expect("a valid pipeline");
    let lane = Lane::new("plant", 0);
    let shape = WindowShape::new(&pipeline.windows, &pipeline.records);
    let part = Part::new(ID.to_owned());
    let mut segmenter = Segmenter::new(lane.clone(), shape.clone(), 4);
    let windows = segmenter.save(&part).expect("windows");
    let saved = Core::new(&pipeline).save(&part).expect("a model");
    let checkpoint = Checkpoint {
        id: ID.to_owned(),
        pipeline: pipeline.name.clone(),
        positions: vec![(lane.clone(), 7)],
        windows: vec![(lane, windows.clone())],
        keys: saved.keys,
        staged: Vec::new(),
        core: saved.core,
    };
    let store = Store::open(&pipeline.checkpoint).expect("a folder").expect("it is named");
    store.save(&checkpoint, &part).expect("a file");
    let path = folder.join(format!("{ID}.checkpoint"));
    Saved {
        file: fs::read(&path).expect("what was saved"),
        checkpoint: postcard::to_stdvec(&checkpoint).expect("a checkpoint"),
        core: checkpoint.core,
        pipeline,
        store,
        path,
        shape,
        windows,
    }
}
