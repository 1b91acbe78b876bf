//! A TCP stream that tells when what was read had reached this machine.
//!
//! On Linux the kernel notes the time of each packet (`SO_TIMESTAMPNS`, socket(7)) and hands it over with the bytes, so a
//! client thread that had to wait for a CPU does not stamp late. Elsewhere the time is that at which the read returned.
//! Bytes of several packets in one read have the time of the last.

use crate::{clock::Clock, record::Nanos, rounds};
use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};

/// A kernel's time further back than this is not believed: the system's clock was set meanwhile.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Reading both clocks takes no longer than this unless the thread was put aside in between.
const LOOK_MAX: Nanos = 5_000;

/// The stream, and the time of its last read.
pub(crate) struct Socket {
    stream: TcpStream,
    clock: Clock,
    /// The kernel gives its times.
    stamped: bool,
    last: ReadTimes,
}

/// When the bytes of a read came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ReadTimes {
    /// When they had reached this machine: by the kernel, or else when the read returned.
    pub(crate) received: Nanos,
    /// How long they lay in the socket before they were read; none where the kernel did not tell.
    pub(crate) waited: Option<Nanos>,
}

impl Socket {
    pub(crate) fn new(stream: TcpStream, clock: Clock) -> Self {
        let stamped = kernel::ask_for_times(&stream);
        Self { stream, clock, stamped, last: ReadTimes::default() }
    }

    /// Of the last read.
    pub(crate) fn times(&self) -> ReadTimes {
        self.last
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    fn note(&mut self, at: Option<Duration>) {
        let (now, waited) = match at.and_then(|at| wait_since(&self.clock, at)) {
            Some((now, waited)) => {
                rounds::note_read();
                (now, Some(waited))
            }
            None => (self.clock.now(), None),
        };
        // Order is kept whatever happens to the system's clock.
        let received = now.saturating_sub(waited.unwrap_or(0)).max(self.last.received);
        self.last = ReadTimes { received, waited };
    }
}

/// Now, and how long ago the system's clock showed `at`; none when that clock was set meanwhile.
fn wait_since(clock: &Clock, at: Duration) -> Option<(Nanos, Nanos)> {
    let mut looked = (clock.now(), system_time()?, clock.now());
    for _ in 0..3 {
        if looked.2 - looked.0 < LOOK_MAX {
            break;
        }
        // This thread lost its CPU between the two clocks.
        looked = (clock.now(), system_time()?, clock.now());
    }
    let waited = looked.1.checked_sub(at).filter(|&waited| waited < WAIT_MAX)?;
    Some((looked.0 + (looked.2 - looked.0) / 2, waited.as_nanos() as Nanos))
}

fn system_time() -> Option<Duration> {
    SystemTime::now().duration_since(UNIX_EPOCH).ok()
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.stamped {
            ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
            this.note(None);
            return Poll::Ready(Ok(()));
        }
        loop {
            ready!(this.stream.poll_read_ready(cx))?;
            let space = buffer.initialize_unfilled();
            let mut read = None;
            let tried = this.stream.try_io(Interest::READABLE, || {
                let (bytes, at) = kernel::receive(&this.stream, space)?;
                read = Some((bytes, at));
                // A read that did not fill the buffer has emptied the socket: without this error the runtime would believe
                // that there is more, and the next read would cost a call that finds nothing.
                if bytes > 0 && bytes < space.len() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
            });
            match (read, tried) {
                (Some((bytes, at)), _) => {
                    buffer.advance(bytes);
                    this.note(at);
                    return Poll::Ready(Ok(()));
                }
                (None, Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
                (None, Err(error)) => return Poll::Ready(Err(error)),
                (None, Ok(())) => unreachable!("a read that succeeded was noted"),
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(target_os = "linux")]
pub(super) mod kernel {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt::ReceiveTimestampns};
    use std::{
        io::{self, IoSliceMut},
        os::fd::{AsFd, AsRawFd},
        time::Duration,
    };

    /// Where the kernel puts its time; a control message begins at a multiple of its header's alignment.
    #[repr(align(16))]
    struct Control([u8; 64]);

    /// Asks the kernel for its times; false where it will not give them.
    pub(in crate::http) fn ask_for_times(stream: &impl AsFd) -> bool {
        setsockopt(stream, ReceiveTimestampns, &true).is_ok()
    }

    /// Reads what is there, with the system's time at which the kernel received the last of it.
    pub(in crate::http) fn receive(stream: &impl AsRawFd, space: &mut [u8]) -> io::Result<(usize, Option<Duration>)> {
        let mut control = Control([0; 64]);
        let mut parts = [IoSliceMut::new(space)];
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut control.0), MsgFlags::MSG_DONTWAIT)?;
        // The first packets after the first request for times may come without.
        let mut times = message.cmsgs().into_iter().flatten().filter_map(|control| match control {
            ControlMessageOwned::ScmTimestampns(time) => Some(Duration::from(time)),
            _ => None,
        });
        let at = times.next();
        drop(times);
        Ok((message.bytes, at))
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) mod kernel {
    use std::{io, time::Duration};

    pub(in crate::http) fn ask_for_times<T>(_: &T) -> bool {
        false
    }

    pub(in crate::http) fn receive<T>(_: &T, _: &mut [u8]) -> io::Result<(usize, Option<Duration>)> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
