//! Patience with readers: a connection that fails once its client has taken nothing for a while.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

/// A connection whose writes end in an error where none goes forward for `limit`. While there is nothing to be written,
/// no time runs.
///
/// It lies under TLS, where it sees each write. The system tells of room only when a third of its buffer is free, at most
/// a megabyte or so, and whoever takes less than that within the limit counts as taking nothing.
pub struct Patient {
    stream: TcpStream,
    limit: Duration,
    /// Runs since a write found no room.
    stuck: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    /// Around `stream`.
    pub fn new(stream: TcpStream, limit: Duration) -> Patient {
        Patient { stream, limit, stuck: None }
    }

    /// What comes of `write`.
    fn watch<T>(&mut self, write: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if write.is_ready() {
            self.stuck = None;
            return write;
        }
        let limit = self.limit;
        let stuck = self.stuck.get_or_insert_with(|| Box::pin(sleep(limit)));
        stuck.as_mut().poll(context).map(|()| {
            tracing::warn!("a reader took nothing for {} s; its connection ends", limit.as_secs());
            Err(io::ErrorKind::TimedOut.into())
        })
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(write, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.watch(write, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    // A socket has no buffer of its own to flush, and waits for nobody to shut down.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::time::{advance, pause, resume};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    async fn pair() -> (Patient, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (Patient::new(listener.accept().await.unwrap().0, LIMIT), client)
    }

    /// Writes as long as there is room; gives the bytes that went.
    async fn fill(patient: &mut Patient) -> io::Result<usize> {
        let mut written = 0;
        let part = vec![0u8; 1 << 20];
        poll_fn(|context| {
            loop {
                match Pin::new(&mut *patient).poll_write(context, &part) {
                    Poll::Ready(Ok(bytes)) => written += bytes,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => return Poll::Ready(Ok(written)),
                }
            }
        })
        .await
    }

    #[tokio::test]
    async fn a_reader_that_takes_nothing_is_given_up() {
        let (mut patient, _client) = pair().await;
        fill(&mut patient).await.unwrap();
        pause();
        let written = tokio::time::timeout(2 * LIMIT, patient.write_all(&[0; 1 << 20])).await;
        assert_eq!(written.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_pause_in_which_nothing_is_to_be_written_is_none_of_the_readers() {
        let (mut patient, mut client) = pair().await;
        for _ in 0..2 {
            let mut written = fill(&mut patient).await.unwrap();
            let mut bytes = vec![0; 1 << 20];
            // The last byte goes once there is room again.
            let (last, ()) = tokio::join!(patient.write_all(&[0]), async {
                while written > 0 {
                    written -= client.read(&mut bytes).await.unwrap().min(written);
                }
            });
            last.unwrap();
            pause();
            advance(10 * LIMIT).await;
            resume();
        }
    }
}
