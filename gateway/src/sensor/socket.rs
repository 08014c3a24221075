//! The file of the Unix socket on which sensors of this machine report: who may, its permissions say.
//!
//! The socket itself is one of pingora's listeners, so a hot upgrade hands it over open: the file
//! stays, and there is no moment at which nobody listens. What is left to do here is the file's: one
//! that a crash left is removed at the start, nobody else's is ever, and this process's at its end.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Time between two looks for the file, which appears as soon as the listener is there.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// The socket's file.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    state: Mutex<State>,
}

/// Whose the file is.
#[derive(Clone, Copy, Debug)]
enum State {
    /// Nobody's yet.
    Awaited,
    /// This process's, of this inode.
    Own(u64),
    /// Another process takes the socket over.
    HandedOver,
}

impl SocketFile {
    /// Sees to it that the socket can be bound. At an upgrade it is open already, and handed over.
    ///
    /// # Errors
    /// Why it cannot be, in words for the operator.
    pub fn prepare(path: &Path, upgrade: bool) -> Result<Self, String> {
        let shown = path.display();
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(format!("sensor.socket: {shown}: {error}")),
            Ok(found) if !found.file_type().is_socket() => {
                return Err(format!(
                    "sensor.socket: {shown} is there and is no socket: name another file"
                ));
            }
            Ok(_) if upgrade => {}
            Ok(_) => match UnixStream::connect(path) {
                Ok(_) => {
                    return Err(format!(
                        "sensor.socket: another process listens on {shown}: end it, or start with \
                         --upgrade to take over from it"
                    ));
                }
                // A process that crashed has left it.
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    fs::remove_file(path).map_err(|error| {
                        format!("sensor.socket: {shown} is stale and cannot be removed: {error}")
                    })?;
                }
                Err(error) => {
                    return Err(format!("sensor.socket: {shown} is there and in use: {error}"));
                }
            },
        }
        if fs::symlink_metadata(path).is_err() {
            // Found here, it can still be said in one line.
            UnixListener::bind(path)
                .and_then(|_| fs::remove_file(path))
                .map_err(|error| format!("sensor.socket: cannot listen on {shown}: {error}"))?;
        }
        Ok(Self { path: path.to_owned(), state: Mutex::new(State::Awaited) })
    }

    /// Follows what becomes of the file, until the process ends.
    pub async fn follow(&self, mut shutdown: watch::Receiver<bool>) {
        let Ok(mut quit) = signal(SignalKind::quit()) else { return };
        let awaited = async {
            let own = loop {
                if let Ok(inode) = self.inode() {
                    break inode;
                }
                tokio::time::sleep(LOOK_INTERVAL).await;
            };
            *self.state.lock() = State::Own(own);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = awaited => {}
            _ = quit.recv() => *self.state.lock() = State::HandedOver,
            _ = shutdown.wait_for(|down| *down) => {}
        }
    }

    /// Removes the file, unless it is another process's by now.
    pub fn remove(&self) {
        let own = match *self.state.lock() {
            State::Awaited => false,
            State::Own(inode) => self.inode().is_ok_and(|found| found == inode),
            // Where nobody came for it, it is stale.
            State::HandedOver => UnixStream::connect(&self.path)
                .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused),
        };
        if own && let Err(error) = fs::remove_file(&self.path) {
            log::warn!("sensor.socket: {} cannot be removed: {error}", self.path.display());
        }
    }

    fn inode(&self) -> io::Result<u64> {
        fs::symlink_metadata(&self.path).map(|found| found.ino())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file::tests::TestDirectory;

    #[test]
    fn a_stale_file_is_removed_and_nothing_else_is() {
        let folder = TestDirectory::new();
        let path = folder.path().join("sensor.sock");
        assert!(SocketFile::prepare(&path, false).is_ok() && !path.exists());

        let listening = UnixListener::bind(&path).unwrap();
        let error = SocketFile::prepare(&path, false).unwrap_err();
        assert!(error.contains("another process listens"), "{error}");
        assert!(SocketFile::prepare(&path, true).is_ok(), "it will be handed over");
        assert!(UnixStream::connect(&path).is_ok());

        drop(listening);
        assert!(path.exists() && SocketFile::prepare(&path, false).is_ok() && !path.exists());

        let file = folder.write("file", "keep me");
        for upgrade in [false, true] {
            let error = SocketFile::prepare(&file, upgrade).unwrap_err();
            assert!(error.contains("is no socket"), "{error}");
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), "keep me");
        for upgrade in [false, true] {
            let error = SocketFile::prepare(&folder.path().join("none/s"), upgrade).unwrap_err();
            assert!(error.contains("cannot listen"), "{error}");
        }
    }

    #[tokio::test]
    async fn the_file_goes_with_the_process_that_made_it() {
        let folder = TestDirectory::new();
        let path = folder.path().join("sensor.sock");
        let file = SocketFile::prepare(&path, false).unwrap();
        file.remove();
        let (end, ended) = watch::channel(false);
        let own = UnixListener::bind(&path).unwrap();
        let (followed, ()) =
            tokio::join!(tokio::time::timeout(Duration::from_secs(5), file.follow(ended)), async {
                tokio::time::sleep(5 * LOOK_INTERVAL).await;
                end.send(true).unwrap();
            });
        followed.unwrap();
        // Another process has put its own in the place.
        fs::rename(&path, folder.path().join("old")).unwrap();
        let other = UnixListener::bind(&path).unwrap();
        file.remove();
        assert!(path.exists());
        drop(other);
        fs::rename(folder.path().join("old"), &path).unwrap();
        file.remove();
        assert!(!path.exists());

        *file.state.lock() = State::HandedOver;
        let successor = UnixListener::bind(&path).unwrap();
        file.remove();
        assert!(path.exists());
        drop((successor, own));
        file.remove();
        assert!(!path.exists());
    }
}
