//! Watches how an attempt gets its connection: how long it took, and which address it was.
//!
//! reqwest has no hook that names the request a connection is made for. But hyper makes it inside the future of that request,
//! so a task-local finds its way.

use std::{
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

tokio::task_local! {
    static TRACE: Arc<Trace>;
}

/// What one attempt's dialling came to.
#[derive(Debug, Default)]
pub(crate) struct Trace(Mutex<Dialled>);

#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Dialled {
    /// The only address that could be dialled.
    pub(crate) ip: Option<IpAddr>,
    /// A connection was begun: no kept one was free.
    pub(crate) began: Option<Instant>,
    pub(crate) connect: Option<Duration>,
}

impl Dialled {
    /// A connection was begun and never came about.
    pub(crate) fn is_unfinished(&self) -> bool {
        self.began.is_some() && self.connect.is_none()
    }

    pub(crate) fn address(&self, port: u16) -> Option<SocketAddr> {
        self.ip.map(|ip| SocketAddr::new(ip, port))
    }
}

impl Trace {
    pub(crate) fn set_address(&self, ip: IpAddr) {
        self.update(|dialled| dialled.ip = Some(ip));
    }

    pub(crate) fn dialled(&self) -> Dialled {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut Dialled)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Runs one attempt so that its dialling is noted in `trace`.
pub(crate) async fn traced<F: Future>(trace: Arc<Trace>, attempt: F) -> F::Output {
    TRACE.scope(trace, attempt).await
}

/// The trace of the attempt this is called from.
pub(crate) fn current_trace() -> Option<Arc<Trace>> {
    TRACE.try_with(Arc::clone).ok()
}

/// Goes around reqwest's connector.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TraceLayer;

impl<S> Layer<S> for TraceLayer {
    type Service = TraceConnector<S>;

    fn layer(&self, inner: S) -> TraceConnector<S> {
        TraceConnector { inner }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct TraceConnector<S> {
    inner: S,
}

impl<S, R> Service<R> for TraceConnector<S>
where
    S: Service<R>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, target: R) -> Self::Future {
        let trace = current_trace();
        let began = Instant::now();
        if let Some(trace) = &trace {
            trace.update(|dialled| dialled.began = Some(began));
        }
        let connecting = self.inner.call(target);
        Box::pin(async move {
            let connection = connecting.await?;
            if let Some(trace) = trace {
                trace.update(|dialled| dialled.connect = Some(began.elapsed()));
            }
            Ok(connection)
        })
    }
}
