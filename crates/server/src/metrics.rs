//! The server's metrics, and their text for Prometheus. Each server has a recorder of its own, none is global.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ::metrics::{
    Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
    with_local_recorder,
};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use tch::Device;

use tch_flux::engine::Stats;
use tch_flux::ops::cuda;

/// Upper bounds in seconds, from a small model's step to a large picture.
const BUCKETS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 600.0];
/// The weight of the last job in the moving mean.
const MEAN_WEIGHT: f64 = 0.2;
/// After so many requests the times that were observed are put into the buckets: where nobody reads the metrics, they would
/// be kept one by one.
const UPKEEP: u64 = 256;

/// The labels of a request. There are few combinations, since routes, methods and statuses are few.
#[derive(Debug, Clone)]
pub(crate) struct RequestLabels {
    pub(crate) route: &'static str,
    pub(crate) method: &'static str,
    pub(crate) status: u16,
}

/// Values that are measured when they are read.
pub(crate) struct Gauges<'a> {
    pub(crate) engine: Stats,
    pub(crate) active_requests: usize,
    pub(crate) upload_bytes: usize,
    pub(crate) stored_image_bytes: usize,
    pub(crate) devices: &'a [Device],
}

/// What is counted and timed while the server runs.
pub(crate) struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    pub(crate) wait: Histogram,
    pub(crate) step: Histogram,
    job: Histogram,
    mean_job: Mutex<Option<f64>>,
    requests: AtomicU64,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let builder = PrometheusBuilder::new().set_buckets(&BUCKETS).expect("there are buckets");
        let recorder = builder.build_recorder();
        let [wait, step, job] = with_local_recorder(&recorder, || {
            describe();
            ["tch_flux_queue_wait_seconds", "tch_flux_step_seconds", "tch_flux_job_seconds"]
                .map(|name| histogram!(name))
        });
        let (mean_job, requests) = (Mutex::default(), AtomicU64::default());
        Self { handle: recorder.handle(), recorder, wait, step, job, mean_job, requests }
    }

    /// Counts a request and the time until its response began.
    pub(crate) fn observe_request(&self, labels: &RequestLabels, time: Duration) {
        let RequestLabels { route, method, status } = *labels;
        let labels = [("route", route.into()), ("method", method.into()), ("status", status.to_string())];
        with_local_recorder(&self.recorder, || {
            counter!("tch_flux_http_requests_total", &labels).increment(1);
            histogram!("tch_flux_http_request_seconds", &labels).record(time);
        });
        if self.requests.fetch_add(1, Ordering::Relaxed).is_multiple_of(UPKEEP) {
            self.handle.run_upkeep();
        }
    }

    /// Counts the time of a finished job.
    pub(crate) fn observe_job(&self, time: Duration) {
        self.job.record(time);
        let mut mean = self.mean_job.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = time.as_secs_f64();
        *mean = Some(mean.map_or(newest, |mean| mean + MEAN_WEIGHT * (newest - mean)));
    }

    /// Returns the moving mean of the jobs' times; before the first, a second.
    pub(crate) fn mean_job_seconds(&self) -> f64 {
        self.mean_job.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or(1.0)
    }

    /// Returns the text for Prometheus.
    pub(crate) fn text(&self, gauges: &Gauges) -> String {
        with_local_recorder(&self.recorder, || set(gauges));
        // Without the lines that are empty.
        self.handle.render().replace("\n\n", "\n")
    }
}

/// Says what each metric is.
fn describe() {
    describe_gauge!("tch_flux_queue_length", "Jobs that wait.");
    describe_gauge!("tch_flux_jobs_running", "Jobs that are drawn.");
    describe_gauge!("tch_flux_workers", "Threads that draw.");
    describe_gauge!("tch_flux_http_requests_active", "Requests that are not answered to the end.");
    describe_gauge!("tch_flux_upload_bytes", "Bodies, and pictures decoded from them.");
    describe_gauge!("tch_flux_kept_picture_bytes", "Pictures that are kept for their addresses.");
    describe_gauge!("process_resident_memory_bytes", "Memory of the process.");
    describe_gauge!("tch_flux_device_free_bytes", "Memory that is free on a device.");
    describe_counter!("tch_flux_jobs_total", "Jobs by outcome.");
    describe_counter!("tch_flux_http_requests_total", "Requests by route, method and status.");
    describe_histogram!("tch_flux_queue_wait_seconds", "How long jobs waited.");
    describe_histogram!("tch_flux_job_seconds", "How long jobs were drawn.");
    describe_histogram!(
        "tch_flux_step_seconds",
        "How long a step of the transformer took, once for each job in it."
    );
    describe_histogram!(
        "tch_flux_http_request_seconds",
        "How long requests took until their answer began, by route, method and status."
    );
}

/// Sets the metrics that are measured when they are read.
fn set(Gauges { engine, active_requests, upload_bytes, stored_image_bytes, devices }: &Gauges) {
    gauge!("tch_flux_queue_length").set(engine.waiting as f64);
    gauge!("tch_flux_jobs_running").set(engine.running as f64);
    gauge!("tch_flux_workers").set(engine.workers as f64);
    gauge!("tch_flux_http_requests_active").set(*active_requests as f64);
    gauge!("tch_flux_upload_bytes").set(*upload_bytes as f64);
    gauge!("tch_flux_kept_picture_bytes").set(*stored_image_bytes as f64);
    for (outcome, count) in [
        ("finished", engine.finished),
        ("failed", engine.failed),
        ("cancelled", engine.cancelled),
        ("refused", engine.refused),
    ] {
        counter!("tch_flux_jobs_total", "outcome" => outcome).absolute(count);
    }
    if let Some(bytes) = resident_bytes() {
        gauge!("process_resident_memory_bytes").set(bytes as f64);
    }
    for device in *devices {
        if let Some(bytes) = free_bytes(*device) {
            let name = format!("{device:?}").to_lowercase();
            gauge!("tch_flux_device_free_bytes", "device" => name).set(bytes as f64);
        }
    }
}

/// Returns the resident memory of the process, where the system tells it.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

fn free_bytes(device: Device) -> Option<u64> {
    match device {
        Device::Cuda(index) => cuda::free_bytes(index),
        _ => None,
    }
}
