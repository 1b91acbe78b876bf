//! Sees to it that the kernel stamps what arrives before anything is measured.
//!
//! It begins to when the first socket asks, by a task that may run much later on a busy machine (`net_enable_timestamp`), and it
//! stops with the last socket that asked. Until then a TCP connection's bytes come without a time.

use super::socket::kernel;
use std::{
    io::Write,
    net::{TcpListener, TcpStream},
    time::Duration,
};

/// Bytes sent to see whether they are stamped, and the time between them.
const TRIES: u32 = 200;
const BETWEEN_TRIES: Duration = Duration::from_millis(1);

/// While one is there, the kernel stamps what arrives.
pub(crate) struct Stamps {
    _asking: TcpStream,
}

impl Stamps {
    /// Asks for stamps by a connection of this machine with itself, and waits until its bytes have one; none where they get none.
    pub(crate) fn begin() -> Option<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).ok()?;
        let asking = TcpStream::connect(listener.local_addr().ok()?).ok()?;
        let (mut other, _) = listener.accept().ok()?;
        if !kernel::ask_for_times(&asking) {
            return None;
        }
        for _ in 0..TRIES {
            other.write_all(&[0]).ok()?;
            let stamped = kernel::receive(&asking, &mut [0; TRIES as usize]).is_ok_and(|(_, at)| at.is_some());
            if stamped {
                return Some(Self { _asking: asking });
            }
            std::thread::sleep(BETWEEN_TRIES);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn once_begun_the_first_bytes_of_a_connection_are_stamped() {
        let _stamps = Stamps::begin().expect("Linux stamps what arrives");
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let mut writing = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (reading, _) = listener.accept().unwrap();
        // They arrive before this socket asks.
        writing.write_all(b"early").unwrap();
        let mut byte = [0; 5];
        reading.peek(&mut byte).unwrap();
        assert!(kernel::ask_for_times(&reading));
        let (bytes, at) = kernel::receive(&reading, &mut byte).unwrap();
        assert_eq!((bytes, at.is_some()), (5, true));
    }
}
