//! `serve`: the OpenAI Images dialect over HTTP.

mod addons;
mod checks;
mod config;
mod help;
mod limits;
mod loader;
mod log_filter;
mod signals;
mod sources;
mod suggestions;
mod units;
mod usage_errors;
mod validate;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::{Resource, getrlimit, setrlimit};
use tch::Device;
use tch_flux::Error;
use tch_flux::generation::Settings;
use tch_flux::numerics;
use tch_flux_server::{Options, Server};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tracing::level_filters::LevelFilter;
use tracing::{info, warn};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

use addons::Addons;
pub(super) use config::{Serve, with_environment};
pub(super) use help::hide_rare;
use loader::ModelLoader;
use signals::Signals;
pub(super) use usage_errors::explain_usage_error;

use super::device::{access, parse_device};
use super::model_args::parse_lora;

/// Threads that wait for sockets; the cores are the engine's.
const SOCKET_THREADS: usize = 2;
/// Threads that encode and decode, and a few that wait.
const SIDE_THREADS: usize = 8;
/// Descriptors for all but connections: files, pipes, the listener.
const OTHER_DESCRIPTORS: u64 = 64;
/// How often the server checks whether a load has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

impl Serve {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let print = self.print_config;
        usage_errors::check_variables()?;
        let config = self.effective()?;
        config.check()?;
        if print {
            print!("{}", config.to_text()?);
            return Ok(ExitCode::SUCCESS);
        }
        config.log()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(SOCKET_THREADS)
            .max_blocking_threads(SIDE_THREADS)
            .thread_name("tch-flux http")
            .enable_all()
            .build()
            .context("no threads to serve with")?;
        runtime.block_on(config.serve())?;
        // A load that was not finished is left where it is.
        runtime.shutdown_background();
        Ok(ExitCode::SUCCESS)
    }

    pub(super) fn log_filter(&self) -> anyhow::Result<Targets> {
        self.checked("log-level", log_filter::parse(&self.log_level))
    }

    fn log(&self) -> anyhow::Result<()> {
        let filter = self.log_filter()?.with_target("hyper", LevelFilter::ERROR);
        let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
        let registry = tracing_subscriber::registry();
        if self.log_json {
            registry.with(lines.json().with_filter(filter)).try_init()?;
        } else {
            registry.with(lines.with_filter(filter)).try_init()?;
        }
        Ok(())
    }

    async fn serve(self) -> anyhow::Result<()> {
        let started = Instant::now();
        let (loader, options, address) = (self.loader()?, self.options()?, self.address()?);
        self.check_files(&loader)?;
        if let Some(threads) = self.threads {
            tch::set_num_threads(self.checked("threads", checks::threads(threads))?);
        }
        if !address.ip().is_loopback() && options.api_key.is_none() {
            warn!(%address, "OPEN TO THE NETWORK WITHOUT A KEY: everybody who reaches it may draw; set --api-key");
        }
        raise_descriptors(options.max_connections)?;
        let signals = Signals::listen()?;
        let listener = TcpListener::bind(address).await;
        let listener = listener.map_err(|problem| self.cannot_listen(address, problem))?;
        let address = listener.local_addr()?;
        let grace = options.grace;
        let server = Server::new(options);
        let (failed, has_failed) = oneshot::channel();
        let (loading, cancel) = (server.clone(), Arc::new(AtomicBool::new(false)));
        let cancelled = cancel.clone();
        let load = std::thread::Builder::new().name("tch-flux load".into());
        let load = load.spawn(move || {
            let load = || numerics::with_cancel(&cancelled, || loader.load(&cancelled));
            // A server whose load has failed ends, whatever the reason.
            let loaded = catch_unwind(AssertUnwindSafe(load)).unwrap_or_else(|panic| {
                let text = panic.downcast_ref::<&str>().map(|text| text.to_string());
                let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
                Err(Error::Panicked(text).into())
            });
            match loaded {
                Ok((engine, model)) => {
                    let name = model.name.clone();
                    loading.ready(engine, model);
                    info!(model = name, seconds = started.elapsed().as_secs_f64(), "ready");
                }
                // Who waits for it may have stopped.
                Err(problem) => drop(failed.send(problem)),
            }
        })?;
        let (stop, stopped) = oneshot::channel();
        tokio::spawn(signals.handle(stop));
        let mut failure = None;
        let end = async {
            tokio::select! {
                _ = stopped => {}
                Ok(problem) = has_failed => failure = Some(problem),
            }
        };
        let run = server.run(listener, end);
        // From here on whoever calls is answered.
        info!(%address, "listening");
        println!("listening on http://{address}");
        // Whoever started the server need not read on.
        let _ = std::io::stdout().flush();
        run.await?;
        cancel.store(true, Ordering::Relaxed);
        // A process that ends under a thread that computes may end badly.
        let until = Instant::now() + grace;
        while !load.is_finished() && Instant::now() < until {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        match failure {
            Some(problem) => Err(problem),
            None => Ok(()),
        }
    }

    fn address(&self) -> anyhow::Result<SocketAddr> {
        self.checked("host", checks::address(&self.host, self.port))
    }

    /// Returns the error for a socket that cannot be opened.
    fn cannot_listen(&self, address: SocketAddr, problem: io::Error) -> anyhow::Error {
        let (name, hint) = match problem.kind() {
            io::ErrorKind::AddrInUse => ("port", "another program has it; 0 takes any that is free"),
            io::ErrorKind::PermissionDenied => ("port", "those below 1024 are for administrators"),
            io::ErrorKind::AddrNotAvailable => ("host", "it is no address of this machine"),
            _ => ("host", "there cannot be listened"),
        };
        anyhow::Error::from(problem).context(format!("{}: {address}: {hint}", self.sources.name(name)))
    }

    /// Checks that the files to load exist, before the server listens; an error names the setting of the file that does not.
    fn check_files(&self, loader: &ModelLoader) -> anyhow::Result<()> {
        let inputs = [loader.model.inputs(), loader.redux.inputs()].concat();
        let named = inputs.iter().map(|input| (input.flag.trim_start_matches("--"), input.path.as_path()));
        let named = named.chain(loader.addons.files());
        for (name, path) in named.chain(loader.loras.iter().map(|lora| ("lora", lora.path.as_path()))) {
            if path.as_os_str().is_empty() {
                self.checked(name, Err::<(), _>("it names no file".to_string()))?;
            }
            let text = path.to_string_lossy();
            if ["model", "redux-model"].contains(&name) && !path.exists() {
                self.checked(name, checks::on_the_hub(&text))?;
                continue;
            }
            std::fs::metadata(path).with_context(|| format!("{}: {text}", self.sources.name(name)))?;
        }
        Ok(())
    }

    fn loader(&self) -> anyhow::Result<ModelLoader> {
        let parse = |text: &String| {
            self.checked("device", parse_device(text).map_err(|problem| format!("{text}: {problem}")))
        };
        let mut devices = self.device.iter().map(parse).collect::<anyhow::Result<Vec<_>>>()?;
        if devices.is_empty() {
            devices.push(Device::Cpu);
        }
        let lora = |text: &String| {
            self.checked("lora", parse_lora(text).map_err(|problem| format!("{text}: {problem}")))
        };
        let loras = self.lora.iter().flatten().map(lora).collect::<Result<_, _>>()?;
        let settings = Settings {
            device: devices[0],
            kind: self.kind.map(Into::into),
            access: access(self.no_mmap),
            keep_text_encoders: self.keep_text_encoders,
            keep_quantized: self.keep_quantized,
            offload: self.offload,
            numerics: self.numerics,
            quantize: self.quantize,
            allow_partial_lora: self.allow_partial_lora,
            vae_tile: self.vae_tile,
        };
        Ok(ModelLoader {
            model: self.model.clone(),
            redux: self.redux.clone(),
            addons: Addons::new(self),
            name: self.model_name.clone(),
            aliases: self.model_alias.clone(),
            devices,
            loras,
            settings,
            queue: self.queue.0,
        })
    }

    fn options(&self) -> anyhow::Result<Options> {
        let loopback = self.address()?.ip().is_loopback();
        let api_key = self.key()?;
        let hosts = self.allowed_host.clone();
        Ok(self.limits.limit(Options {
            check_hosts: !hosts.is_empty() || (loopback && api_key.is_none()),
            api_key,
            hosts,
            cors_origins: self.cors_origin.clone(),
            public_url: self.public_url.clone(),
            ..Options::default()
        }))
    }
}

/// Raises the limit of descriptors to as many as the connections take.
fn raise_descriptors(connections: usize) -> anyhow::Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    let needed = connections as u64 + OTHER_DESCRIPTORS;
    if limit.current.is_none_or(|now| now >= needed) {
        return Ok(());
    }
    limit.current = Some(limit.maximum.map_or(needed, |most| most.min(needed)));
    if limit.current < Some(needed) {
        warn!(
            wanted = needed,
            limit = limit.current,
            "the system gives fewer descriptors than connections may take"
        );
    }
    setrlimit(Resource::Nofile, limit).context("raising the number of open files")
}
