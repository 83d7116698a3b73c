//! Connections: accepted up to a bound, each with limits in time, and their end.

use std::future::Future;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::ConnectInfo;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep, timeout};
use tower::ServiceExt;
use tracing::{debug, info, warn};

use super::state::{Phase, Shared};

/// Bytes of a head, and of what is read or written ahead for a connection.
const BUFFER: usize = 64 << 10;
/// A client that reads so many bytes in the time that a write may take is no slow reader.
const ENOUGH: usize = 64 << 10;
/// How long answers may still be on their way when everything else has ended.
const FLUSH: Duration = Duration::from_secs(2);
/// How long a block of a model may take to hear that its job is cancelled.
const LAST_BLOCK: Duration = Duration::from_secs(10);
/// The system has no descriptor left: one will come free.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

pub(super) async fn run(
    shared: Arc<Shared>,
    router: Router,
    listener: TcpListener,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    let places = Arc::new(Semaphore::new(shared.options.connections));
    let (close, closing) = watch::channel(false);
    let mut connections = JoinSet::new();
    // Until its end it accepts: who asks meanwhile is told that it stops, where a closed port would tell nothing.
    let mut end = pin!(async {
        stop.await;
        drain(&shared).await;
    });
    loop {
        let (place, stream, client) = tokio::select! {
            biased;
            () = &mut end => break,
            accepted = accept(&listener, &places) => match accepted {
                Ok(accepted) => accepted,
                Err(problem) => {
                    warn!(%problem, "no connection was accepted");
                    sleep(ACCEPT_AGAIN).await;
                    continue;
                }
            },
        };
        while connections.try_join_next().is_some() {}
        connections.spawn(serve(shared.clone(), router.clone(), stream, client, place, closing.clone()));
    }
    drop(listener);
    // Connections that are gone already need not hear of it.
    let _ = close.send(true);
    let ended = timeout(FLUSH, async { while connections.join_next().await.is_some() {} }).await;
    if ended.is_err() {
        connections.shutdown().await;
    }
    rest(&shared).await;
    Ok(())
}

/// Takes no more jobs, and lets those that it has finish as long as they may.
async fn drain(shared: &Shared) {
    // A balancer has never sent anything to one that was not ready, and knows already of one that drains.
    let notice = if shared.phase() == Phase::Ready { shared.options.drain_notice } else { Duration::ZERO };
    let noticed = sleep(notice);
    shared.enter(Phase::Draining);
    info!("stopping: no more jobs are taken");
    if timeout(shared.options.grace, shared.active.none()).await.is_err() {
        warn!("the grace time is over: what is left is cancelled");
    }
    noticed.await;
    shared.enter(Phase::Stopped);
}

/// Waits for the engine, so that the process does not end under its threads.
async fn rest(shared: &Shared) {
    let Some(engine) = shared.engine().cloned() else { return };
    engine.close();
    let rested = tokio::task::spawn_blocking(move || engine.drain(Instant::now() + LAST_BLOCK)).await;
    if !rested.unwrap_or(false) {
        warn!("the engine is still busy");
    }
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> io::Result<(OwnedSemaphorePermit, TcpStream, SocketAddr)> {
    let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, client) = listener.accept().await?;
    Ok((place, stream, client))
}

async fn serve(
    shared: Arc<Shared>,
    router: Router,
    stream: TcpStream,
    client: SocketAddr,
    _place: OwnedSemaphorePermit,
    mut closing: watch::Receiver<bool>,
) {
    // Small answers go at once; a socket that cannot do that is as good.
    let _ = stream.set_nodelay(true);
    let stream = TokioIo::new(Impatient::new(stream, shared.options.write_timeout));
    let router = router.map_request(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(client));
        request
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(shared.options.header_timeout)
        .max_buf_size(BUFFER)
        .serve_connection(stream, TowerToHyperService::new(router));
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        _ = closing.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(problem) = ended {
        debug!(%problem, "a connection broke off");
    }
}

/// A stream whose writes fail once its reader has taken next to nothing for too long.
struct Impatient {
    stream: TcpStream,
    limit: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    /// Bytes since the timer was set.
    written: usize,
}

impl Impatient {
    fn new(stream: TcpStream, limit: Duration) -> Self {
        Self { stream, limit, timer: None, written: 0 }
    }

    fn calm(&mut self) {
        (self.timer, self.written) = (None, 0);
    }

    fn judge(
        &mut self,
        context: &mut Context<'_>,
        write: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match write {
            Poll::Ready(Ok(written)) => {
                self.written += written;
                if self.written >= ENOUGH {
                    self.calm();
                }
                Poll::Ready(Ok(written))
            }
            Poll::Ready(failed) => Poll::Ready(failed),
            Poll::Pending => {
                let limit = self.limit;
                let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(limit)));
                let slow = || io::Error::new(io::ErrorKind::TimedOut, "the client does not read");
                timer.as_mut().poll(context).map(|()| Err(slow()))
            }
        }
    }
}

impl AsyncRead for Impatient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Impatient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.judge(context, write)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.judge(context, write)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// Asked for when nothing is left to write.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.calm();
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
