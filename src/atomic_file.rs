//! Atomic replacement of files. Readers see the old file or the new one, even after a writing process was killed.

use std::ffi::{OsStr, OsString};
use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;

use tempfile::NamedTempFile;

/// Suffix of the name of a file that is being written.
const SUFFIX: &str = ".partial";
/// Number of random characters before the suffix.
const RANDOM: usize = 6;

/// Writes a file beside `path` with `write`, synchronises it to the disk, then renames it to `path`. If `path` is a
/// link, the file that it points to is replaced.
///
/// The new file has the permissions of the old one. A process that is killed while it writes leaves a file
/// `.NAME.<random characters>.partial`, which the next call removes.
pub fn replace(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let path = &path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let (folder, name) = check(path)?;
    let prefix = prefix_of(name);
    remove_abandoned(folder, &prefix);
    let mut file = begin(folder, &prefix)?;
    // The permissions are set before anything is written, so that the new file is never readable by more users.
    match path.metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        old => file.as_file().set_permissions(old?.permissions())?,
    }
    write(file.as_file_mut())?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    sync_folder(folder)
}

/// Checks that [`replace`] can begin to write, by creating the file beside `path` and removing it.
pub fn try_out(path: &Path) -> io::Result<()> {
    let path = &path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let (folder, name) = check(path)?;
    begin(folder, &prefix_of(name)).map(drop)
}

/// Returns advice on a file that could not be written.
pub fn way_out(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "make room on the disk, or name a file on another",
        io::ErrorKind::FileTooLarge => "name a file on a disk that supports files of this size",
        io::ErrorKind::InvalidFilename => "give it a shorter name",
        io::ErrorKind::NotFound => "make its folder, or name a file in a folder that is there",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "name a file in a folder that may be written"
        }
        _ => "name another file",
    }
}

/// Returns the folder and the name of a path that may be replaced, which is a file or does not exist yet.
fn check(path: &Path) -> io::Result<(&Path, &OsStr)> {
    let refused = |message| io::Error::new(io::ErrorKind::InvalidInput, message);
    match path.metadata() {
        // Replacing a device or a pipe would remove it.
        Ok(about) if !about.is_file() => return Err(refused("it is there, and is not a file")),
        Err(error) if error.kind() == io::ErrorKind::InvalidFilename => return Err(error),
        _ => {}
    }
    let name = path.file_name().ok_or_else(|| refused("it is not the name of a file"))?;
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    Ok((folder, name))
}

/// Returns the start of the names of temporary files for a file. Long names are cut off, so that the temporary name
/// fits wherever the file's own name does.
fn prefix_of(name: &OsStr) -> OsString {
    const LONGEST: usize = 200;
    let mut prefix = OsString::from(".");
    if name.len() <= LONGEST {
        prefix.push(name);
    } else {
        let name = name.to_string_lossy();
        let end = name.char_indices().map(|(start, _)| start).take_while(|&start| start <= LONGEST).last();
        prefix.push(&name[..end.unwrap_or(0)]);
    }
    prefix.push(".");
    prefix
}

/// Creates the file to write and locks it while it is open. The lock distinguishes it from the file of a process that
/// was killed.
fn begin(folder: &Path, prefix: &OsStr) -> io::Result<NamedTempFile> {
    loop {
        let mut builder = tempfile::Builder::new();
        builder.prefix(prefix).rand_bytes(RANDOM).suffix(SUFFIX);
        // As for any other file, the user's umask decides who may read it.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let file = builder.tempfile_in(folder)?;
        match file.as_file().try_lock() {
            // Another process may have locked the file first, to remove it as abandoned.
            Err(TryLockError::WouldBlock) => {}
            // Some file systems have no locks. No file is treated as abandoned there.
            Ok(()) | Err(TryLockError::Error(_)) if file.path().exists() => return Ok(file),
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
    }
}

/// Removes the files of processes that were killed while they wrote.
fn remove_abandoned(folder: &Path, prefix: &OsStr) {
    // Errors are ignored: a file that cannot be read or removed only takes up room.
    let Ok(entries) = folder.read_dir() else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.as_encoded_bytes().strip_prefix(prefix.as_encoded_bytes());
        let random = name.and_then(|name| name.strip_suffix(SUFFIX.as_bytes()));
        if random.is_some_and(|random| random.len() == RANDOM && random.iter().all(u8::is_ascii_alphanumeric))
            && let Ok(file) = File::open(entry.path())
            && file.try_lock().is_ok()
        {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Synchronises the folder, so that the new name reaches the disk, on systems that support it.
fn sync_folder(folder: &Path) -> io::Result<()> {
    #[cfg(unix)]
    match File::open(folder)?.sync_all() {
        // Some file systems do not support this, and do not need it.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
        done => done?,
    }
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn names(folder: &Path) -> Vec<String> {
        let entries = folder.read_dir().expect("a folder");
        let mut names: Vec<String> = entries
            .map(|entry| entry.expect("an entry").file_name().into_string())
            .map(|name| name.expect("UTF-8"))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_and_nothing_is_left_beside_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        for text in ["first", "second"] {
            replace(&path, |file| file.write_all(text.as_bytes())).expect("replaced");
            assert_eq!(std::fs::read_to_string(&path).expect("read"), text);
        }
        assert_eq!(names(folder.path()), ["file"]);
    }

    #[test]
    fn what_fails_leaves_the_old_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        std::fs::write(&path, "old").expect("written");
        let failed = replace(&path, |file| {
            file.write_all(b"new")?;
            Err(io::Error::other("no more room"))
        });
        assert_eq!(failed.expect_err("fails").to_string(), "no more room");
        assert_eq!(std::fs::read_to_string(&path).expect("read"), "old");
        assert_eq!(names(folder.path()), ["file"]);
        let refused = replace(folder.path(), |_| Ok(())).expect_err("a folder");
        assert!(refused.to_string().contains("not a file"), "{refused}");
    }

    #[test]
    fn what_a_dead_process_left_is_removed_and_what_is_being_written_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        for name in [
            ".file.aaaaaa.partial",
            ".other.aaaaaa.partial",
            ".file.keep",
            ".file.my-notes.partial",
            ".file.a-note.partial",
        ] {
            std::fs::write(folder.path().join(name), "").expect("written");
        }
        let being_written = begin(folder.path(), OsStr::new(".file.")).expect("begun");
        replace(&path, |_| Ok(())).expect("replaced");
        assert!(being_written.path().exists());
        drop(being_written);
        assert_eq!(
            names(folder.path()),
            [".file.a-note.partial", ".file.keep", ".file.my-notes.partial", ".other.aaaaaa.partial", "file"]
        );
    }

    #[test]
    fn a_long_name_is_replaced_like_any_other() {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["x".repeat(249), "é".repeat(120)] {
            let path = folder.path().join(&name);
            try_out(&path).expect("could be written");
            replace(&path, |file| file.write_all(b"new")).expect("replaced");
            assert_eq!(names(folder.path()), [name]);
            std::fs::remove_file(&path).expect("removed");
        }
        assert!(try_out(&folder.path().join("x".repeat(300))).is_err() && names(folder.path()).is_empty());
    }

    #[cfg(unix)]
    #[test]
    fn a_file_keeps_its_mode() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        std::fs::write(&path, "old").expect("written");
        for mode in [0o600, 0o640, 0o664] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("set");
            replace(&path, |_| Ok(())).expect("replaced");
            assert_eq!(path.metadata().expect("there").permissions().mode() & 0o777, mode);
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_link_stays_a_link() {
        let folder = tempfile::tempdir().expect("a folder");
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        std::fs::write(&file, "old").expect("written");
        std::os::unix::fs::symlink(&file, &link).expect("linked");
        replace(&link, |file| file.write_all(b"new")).expect("replaced");
        assert!(link.is_symlink());
        assert_eq!(std::fs::read_to_string(&file).expect("read"), "new");
    }
}
