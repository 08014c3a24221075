//! `[sensor]`: the Unix socket on which DNS sensors of this machine report.

use std::os::unix::ffi::OsStrExt;

use super::{Item, Section};
use crate::config::SensorSocket;

/// Bytes of a socket's path at most: `sun_path` of unix(7) less its end.
const PATH_BYTES_MAX: usize = 107;
/// Permissions of the socket's file.
const MODE: u32 = 0o660;

/// `None` where it is wrong, `Some(None)` where it is not there.
pub(super) fn read(root: &mut Section<'_, '_>) -> Option<Option<SensorSocket>> {
    let Some(item) = root.optional("sensor") else { return Some(None) };
    let mut table = item.table()?;
    let path = table.required("socket", "such as \"/run/stillgate/sensor.sock\"");
    let path = path.and_then(|item| {
        let path = item.path()?;
        let bytes = path.as_os_str().as_bytes().len();
        if bytes > PATH_BYTES_MAX || path.to_str().is_none() {
            item.error(format!(
                "is a path of {bytes} bytes, a socket's may have {PATH_BYTES_MAX} of UTF-8"
            ));
            return None;
        }
        Some(path)
    });
    let mode_item = table.optional("socket_mode");
    let mode = match &mode_item {
        Some(item) => mode(item),
        None => Some(MODE),
    };
    if mode.is_some_and(|mode| mode & 0o002 != 0) {
        table.warn("socket_mode lets every user of this machine report what it likes");
    }
    table.finish();
    Some(Some(SensorSocket { path: path?, mode: mode? }))
}

fn mode(item: &Item<'_, '_>) -> Option<u32> {
    let text = item.text()?;
    let digits = matches!(text.len(), 3 | 4) && text.bytes().all(|b| matches!(b, b'0'..=b'7'));
    let mode = u32::from_str_radix(&text, 8).ok().filter(|mode| digits && *mode <= 0o777);
    // Who connects needs to write (unix(7)); the gateway itself looks whether anybody listens.
    let mode = mode.filter(|mode| mode & 0o600 == 0o600);
    if mode.is_none() {
        item.error("must be permissions in octal from \"0600\" to \"0777\", its owner's 6 or 7");
    }
    mode
}

#[cfg(test)]
mod tests {
    use super::super::tests::{MINIMAL, errors_in, parse_in, ready};

    #[test]
    fn a_socket_has_a_path_and_permissions() {
        let directory = ready();
        let with = |lines: &str| format!("{MINIMAL}\n[sensor]\n{lines}\n");
        assert_eq!(parse_in(&directory, MINIMAL).unwrap().sensor_socket, None);
        for (mode, expected, warned) in [
            ("", 0o660, false),
            ("socket_mode = \"600\"", 0o600, false),
            ("socket_mode = \"0666\"", 0o666, true),
        ] {
            let config =
                parse_in(&directory, &with(&format!("socket = \"s.sock\"\n{mode}"))).unwrap();
            let socket = config.sensor_socket.unwrap();
            assert_eq!((socket.path, socket.mode), (directory.path().join("s.sock"), expected));
            let warns =
                config.warnings.iter().any(|warning| warning.message.contains("every user"));
            assert_eq!(warns, warned);
        }
        let long = format!("socket = \"{}\"", "s".repeat(108));
        for (lines, part) in [
            ("", "sensor.socket: is missing"),
            ("socket = 5", "sensor.socket: is"),
            (&long, "a socket's may have 107"),
            ("socket = \"s\"\nsocket_mode = \"0460\"", "sensor.socket_mode: must be permissions"),
            ("socket = \"s\"\nsocket_mode = \"1660\"", "sensor.socket_mode: must be permissions"),
            ("socket = \"s\"\nsocket_mode = \"+660\"", "sensor.socket_mode: must be permissions"),
            ("socket = \"s\"\nsocket_mode = 660", "sensor.socket_mode: is"),
            ("socket = \"s\"\nmode = \"0660\"", "sensor.mode: "),
        ] {
            let errors = errors_in(&directory, &with(lines));
            assert!(errors.iter().any(|error| error.contains(part)), "{part}: {errors:?}");
        }
    }
}
