//! Connections: accepted up to a limit, encrypted where asked, dropped when their headers do not come, drained at the end.

use std::sync::Arc;
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
    loop {
        let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.notified() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection =
                    Connection { router: router.clone(), wait, watcher: graceful.watcher(), _place: place };
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
    /// For the handshake, for each request's headers, and between requests.
    wait: Duration,
    watcher: Watcher,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    async fn run(self, stream: TcpStream, tls: Option<TlsAcceptor>) {
        // Tokens are small: without this, the system would hold each back until the one before is acknowledged.
        let _ = stream.set_nodelay(true);
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
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            router.clone().oneshot(request.map(Body::new))
        });
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
        // Errors here are the client's: it hung up, or was too slow.
        if let Err(error) = self.watcher.watch(connection).await {
            tracing::debug!(%error, "a connection ended");
        }
    }
}
