//! Connections: accepted up to a limit, encrypted where asked, dropped when their headers do not come, drained at the end.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use crate::app::Limits;
use crate::patience::Patient;

/// Accepts connections until `stop`, then lets those that are open end, for at most the time that the limits say. Gives the
/// end of that time.
pub async fn accept(
    listener: TcpListener,
    router: Router,
    tls: Option<TlsAcceptor>,
    limits: &Limits,
    stop: Arc<Notify>,
) -> Instant {
    let places = Arc::new(Semaphore::new(limits.connections));
    let graceful = GracefulShutdown::new();
    let wait = Duration::from_secs(limits.header_timeout_s);
    let patience = Duration::from_secs(limits.slow_reader_s);
    loop {
        let next = async {
            let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            next = next => next,
            () = stop.notified() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection =
                    Connection { router: router.clone(), wait, patience, watcher: graceful.watcher(), _place: place };
                tokio::spawn(connection.run(stream, tls.clone()));
            }
            // No file descriptors left, most likely: some will be free again soon.
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    let until = Instant::now() + Duration::from_secs(limits.drain_s);
    let drained = tokio::time::timeout_at(until.into(), graceful.shutdown()).await;
    if drained.is_err() {
        tracing::warn!("{} s have passed; answers that are not finished are cut off", limits.drain_s);
    }
    until
}

struct Connection {
    router: Router,
    /// For the handshake, for the first request, for the headers of each, and between two.
    wait: Duration,
    /// For a client that takes nothing.
    patience: Duration,
    watcher: Watcher,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    async fn run(self, stream: TcpStream, tls: Option<TlsAcceptor>) {
        // Tokens are small: without this, the system would hold each back until the one before is acknowledged.
        let _ = stream.set_nodelay(true);
        let stream = Patient::new(stream, self.patience);
        match tls {
            None => self.serve(stream).await,
            Some(acceptor) => match tokio::time::timeout(self.wait, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => self.serve(stream).await,
                Ok(Err(error)) => tracing::debug!(%error, "no TLS handshake"),
                Err(_) => tracing::debug!("the TLS handshake took too long"),
            },
        }
    }

    async fn serve(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let mut builder = Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(self.wait);
        builder.http2().timer(TokioTimer::new()).keep_alive_interval(self.wait).max_concurrent_streams(256);
        let router = self.router;
        let has_asked = Arc::new(AtomicBool::new(false));
        let asks = has_asked.clone();
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            asks.store(true, Ordering::Relaxed);
            router.clone().oneshot(request.map(Body::new))
        });
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
        let mut serving = pin!(self.watcher.watch(connection));
        // The builder's own times begin when the first bytes have told which HTTP it is, and for those it waits for ever.
        let ended = match tokio::time::timeout(self.wait, serving.as_mut()).await {
            Ok(ended) => ended,
            Err(_) if has_asked.load(Ordering::Relaxed) => serving.await,
            Err(_) => return tracing::debug!("a client asked for nothing"),
        };
        // Errors here are the client's: it hung up, or was too slow.
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection ended");
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::JoinHandle;

    use super::*;

    const ASK: &[u8] = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n";

    /// A server that can be told to stop.
    struct Server {
        address: std::net::SocketAddr,
        stop: Arc<Notify>,
        task: JoinHandle<Instant>,
    }

    impl Server {
        async fn start(limits: Limits, router: Router) -> Server {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let (address, stop) = (listener.local_addr().unwrap(), Arc::new(Notify::new()));
            let until = stop.clone();
            let task = tokio::spawn(async move { accept(listener, router, None, &limits, until).await });
            Server { address, stop, task }
        }

        /// A client that has sent this.
        async fn client(&self, bytes: &[u8]) -> TcpStream {
            let mut client = TcpStream::connect(self.address).await.unwrap();
            client.write_all(bytes).await.unwrap();
            client
        }
    }

    /// Ends a test that would wait for ever.
    async fn in_time<T>(work: impl Future<Output = T>) -> T {
        tokio::time::timeout(Duration::from_secs(60), work).await.expect("it waits for ever")
    }

    /// The first bytes of an answer; none if the server hung up.
    async fn reply(client: &mut TcpStream) -> Vec<u8> {
        let mut bytes = vec![0; 12];
        let read = in_time(client.read(&mut bytes)).await.unwrap_or(0);
        bytes.truncate(read);
        bytes
    }

    fn hello() -> Router {
        Router::new().route("/", get(async || "hello"))
    }

    #[tokio::test]
    async fn a_client_that_asks_for_nothing_is_let_go() {
        let server = Server::start(Limits { header_timeout_s: 1, ..Limits::default() }, hello()).await;
        let mut clients = Vec::new();
        for start in [&b""[..], b"PRI * HTTP/2.0\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HT"] {
            clients.push(server.client(start).await);
        }
        for mut client in clients {
            // HTTP/2's settings may come first.
            while !reply(&mut client).await.is_empty() {}
        }
    }

    #[tokio::test]
    async fn an_answer_may_take_longer_than_its_question() {
        let slow = async || {
            // The clock jumps from timer to timer, so that of the headers comes first.
            tokio::time::pause();
            tokio::time::sleep(Duration::from_secs(100)).await;
            tokio::time::resume();
            "hello"
        };
        let server = Server::start(Limits::default(), Router::new().route("/", get(slow))).await;
        // Not read with a time limit, which would be over at once.
        let mut bytes = [0; 12];
        server.client(ASK).await.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"HTTP/1.1 200");
    }

    #[tokio::test]
    async fn it_stops_although_all_places_are_taken() {
        // The first client stays as long as it likes.
        let limits = Limits { connections: 1, header_timeout_s: 3600, ..Limits::default() };
        let server = Server::start(limits, hello()).await;
        let mut client = server.client(ASK).await;
        assert_eq!(reply(&mut client).await, b"HTTP/1.1 200");
        let _waits = server.client(ASK).await;
        server.stop.notify_one();
        in_time(server.task).await.unwrap();
    }

    #[tokio::test]
    async fn a_reader_that_takes_nothing_loses_its_place() {
        let long = Router::new().route("/", get(async || vec![0u8; 64 << 20]));
        let limits = Limits { connections: 1, slow_reader_s: 1, ..Limits::default() };
        let server = Server::start(limits, long).await;
        let _takes_nothing = server.client(ASK).await;
        assert_eq!(reply(&mut server.client(ASK).await).await, b"HTTP/1.1 200");
    }
}
