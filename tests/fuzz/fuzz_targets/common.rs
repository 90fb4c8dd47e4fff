//! Writes the inputs to files in a folder in memory.

use std::path::PathBuf;

use wgpu_optim_cli::data;

/// Writes these files and reads the first one. The resulting data must be consistent.
pub fn load(folder: &str, files: &[(&str, &[u8])]) {
    let memory = PathBuf::from("/dev/shm");
    let base = if memory.is_dir() { memory } else { std::env::temp_dir() };
    let folder = base.join(format!("wgpu-optim-fuzz-{folder}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    for (name, bytes) in files {
        std::fs::write(folder.join(name), bytes).expect("a file");
    }
    let path = folder.join(files[0].0);
    match data::load(path.to_str().expect("UTF-8")) {
        Ok(dataset) => {
            assert!(dataset.features > 0 && dataset.classes > 1);
            for split in [&dataset.train, &dataset.test] {
                assert!(split.rows() > 0);
                assert_eq!(split.x.len(), split.rows() * dataset.features);
                let classes = 0..dataset.classes as u32;
                assert!(split.y.iter().all(|class| classes.contains(class)));
            }
        }
        // The error is one line that names one of the files.
        Err(error) => {
            let error = error.to_string();
            assert!(files.iter().any(|(name, _)| error.contains(name)), "{error}");
        }
    }
}
