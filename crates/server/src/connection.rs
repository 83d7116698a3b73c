//! Accepts connections up to a limit, each with limits of time, and ends them.

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

use crate::state::{Phase, ServerState};

/// The most bytes of a request's head, and of what is read or written ahead for a connection.
const BUFFER_BYTES: usize = 64 << 10;
/// A client that reads so many bytes within the write timeout is no slow reader.
const PROGRESS_BYTES: usize = 64 << 10;
/// How long responses may still be sent after everything else has ended.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the engine may take to notice that its jobs are cancelled, which it checks after each block of a model.
const ENGINE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait after a failed accept: the system may have no descriptor left until another connection ends.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Serves connections until `stop`, then drains the server.
pub(crate) async fn run(
    state: Arc<ServerState>,
    router: Router,
    listener: TcpListener,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    let permits = Arc::new(Semaphore::new(state.options.max_connections));
    let (close, closing) = watch::channel(false);
    let mut connections = JoinSet::new();
    // While it drains, the server accepts connections, so that clients read that it stops instead of meeting a closed port.
    let mut end = pin!(async {
        stop.await;
        drain(&state).await;
    });
    loop {
        let (permit, stream, client) = tokio::select! {
            biased;
            () = &mut end => break,
            accepted = accept(&listener, &permits) => match accepted {
                Ok(accepted) => accepted,
                Err(problem) => {
                    warn!(%problem, "no connection was accepted");
                    sleep(ACCEPT_RETRY).await;
                    continue;
                }
            },
        };
        while connections.try_join_next().is_some() {}
        connections.spawn(serve(state.clone(), router.clone(), stream, client, permit, closing.clone()));
    }
    drop(listener);
    // Without connections nobody receives this.
    let _ = close.send(true);
    let ended = timeout(FLUSH_TIMEOUT, async { while connections.join_next().await.is_some() {} }).await;
    if ended.is_err() {
        connections.shutdown().await;
    }
    wait_for_engine(&state).await;
    Ok(())
}

/// Takes no more jobs, and lets the others finish within the grace time.
async fn drain(state: &ServerState) {
    // A load balancer sends nothing to a server that was not ready, and knows already of one that drains.
    let notice = if state.phase() == Phase::Ready { state.options.drain_notice } else { Duration::ZERO };
    let notice = sleep(notice);
    state.enter(Phase::Draining);
    info!("stopping: no more jobs are taken");
    if timeout(state.options.grace, state.active_requests.wait_for_none()).await.is_err() {
        warn!("the grace time is over: what is left is cancelled");
    }
    notice.await;
    state.enter(Phase::Stopped);
}

/// Waits for the engine, so that the process does not end under its threads.
async fn wait_for_engine(state: &ServerState) {
    let Some(engine) = state.engine().cloned() else { return };
    engine.close();
    let is_idle = tokio::task::spawn_blocking(move || engine.drain(Instant::now() + ENGINE_TIMEOUT)).await;
    if !is_idle.unwrap_or(false) {
        warn!("the engine is still busy");
    }
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> io::Result<(OwnedSemaphorePermit, TcpStream, SocketAddr)> {
    let permit = permits.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, client) = listener.accept().await?;
    Ok((permit, stream, client))
}

async fn serve(
    state: Arc<ServerState>,
    router: Router,
    stream: TcpStream,
    client: SocketAddr,
    _permit: OwnedSemaphorePermit,
    mut closing: watch::Receiver<bool>,
) {
    // Small responses are sent at once; without the option they are only slower.
    let _ = stream.set_nodelay(true);
    let stream = TokioIo::new(WriteTimeoutStream::new(stream, state.options.write_timeout));
    let router = router.map_request(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(client));
        request
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(state.options.header_timeout)
        .max_buf_size(BUFFER_BYTES)
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
struct WriteTimeoutStream {
    stream: TcpStream,
    limit: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    /// The bytes written since the timer was set.
    written: usize,
}

impl WriteTimeoutStream {
    fn new(stream: TcpStream, limit: Duration) -> Self {
        Self { stream, limit, timer: None, written: 0 }
    }

    fn reset_timer(&mut self) {
        (self.timer, self.written) = (None, 0);
    }

    fn check_timeout(
        &mut self,
        context: &mut Context<'_>,
        write: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match write {
            Poll::Ready(Ok(written)) => {
                self.written += written;
                if self.written >= PROGRESS_BYTES {
                    self.reset_timer();
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

impl AsyncRead for WriteTimeoutStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for WriteTimeoutStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.check_timeout(context, write)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.check_timeout(context, write)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// The HTTP library flushes when nothing is left to write.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.reset_timer();
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
