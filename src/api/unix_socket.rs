//! The file of a Unix socket: bound, replaced when a dead process left it,
//! and removed at the end.

use std::fs::{self, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

/// A socket file of ours; removed when dropped, if it is still ours.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    mode: u32,
    /// Device and inode.
    id: (u64, u64),
}

impl SocketFile {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn mode(&self) -> u32 {
        self.mode
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|found| id(&found) == self.id);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the socket file cannot be removed");
        }
    }
}

/// Binds a Unix socket at `path`.
pub(super) async fn bind(path: &Path, mode: u32) -> io::Result<(UnixListener, SocketFile)> {
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            remove_stale(path).await?;
            UnixListener::bind(path)?
        }
        other => other?,
    };
    // Until here the umask keeps others out; and whoever comes in is known by
    // its uid, never by having reached the file.
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    let id = id(&fs::symlink_metadata(path)?);
    Ok((listener, SocketFile { path: path.to_owned(), mode, id }))
}

/// Removes a socket file on which nobody listens, and nothing else.
async fn remove_stale(path: &Path) -> io::Result<()> {
    let in_use =
        |why: &str| Err(io::Error::new(io::ErrorKind::AddrInUse, format!("{}: {why}", path.display())));
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        return in_use("there is a file that is not a socket");
    }
    // It does not block: a listener whose backlog is full answers at once too.
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Ok(_) => in_use("another process listens here"),
        Err(error) => in_use(&format!("another process may listen here ({error})")),
    }
}

fn id(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}
