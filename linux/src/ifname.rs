//! Interface names as the kernel takes them: at most 15 bytes and a zero.

use std::io;

use libc::c_char;

/// Copies a name into a kernel structure.
///
/// # Errors
/// `InvalidInput` when it is empty, too long or holds a zero byte.
pub(crate) fn fill(field: &mut [c_char; libc::IFNAMSIZ], name: &str) -> io::Result<()> {
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes.len() >= field.len() || bytes.contains(&0) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{name:?} is no interface name: 1 to 15 bytes are needed"),
        ));
    }
    for (to, from) in field.iter_mut().zip(bytes) {
        *to = *from as c_char;
    }
    Ok(())
}
