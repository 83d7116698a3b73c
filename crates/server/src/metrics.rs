//! Numbers for Prometheus, in its text form.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tch::Device;

use super::state::Shared;
use tch_flux::ops::cuda;

/// Upper bounds in seconds, from a small model's step to a large picture.
const BUCKETS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 600.0];
/// How much of the mean is that of the last job.
const NEWEST: f64 = 0.2;

/// How often which time was taken.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    /// Not cumulative; the last one has no upper bound.
    counts: [AtomicU64; BUCKETS.len() + 1],
    micros: AtomicU64,
}

impl Histogram {
    pub(super) fn observe(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let bucket = BUCKETS.iter().position(|bound| seconds <= *bound).unwrap_or(BUCKETS.len());
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(time.as_micros() as u64, Ordering::Relaxed);
    }

    /// `labels` are `name="value"` and a comma, or nothing.
    fn write(&self, text: &mut String, name: &str, labels: &str) {
        let mut sum = 0;
        let bounds = BUCKETS.iter().map(f64::to_string).chain(["+Inf".to_string()]);
        for (bound, count) in bounds.zip(&self.counts) {
            sum += count.load(Ordering::Relaxed);
            line(text, &format!("{name}_bucket{{{labels}le=\"{bound}\"}}"), sum);
        }
        let all = labels.trim_end_matches(',');
        let braces = if all.is_empty() { String::new() } else { format!("{{{all}}}") };
        line(text, &format!("{name}_sum{braces}"), self.micros.load(Ordering::Relaxed) as f64 / 1e6);
        line(text, &format!("{name}_count{braces}"), sum);
    }
}

/// What a request was: bounded in number, since routes, methods and states are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Asked {
    pub(super) route: &'static str,
    pub(super) method: &'static str,
    pub(super) status: u16,
}

#[derive(Debug, Default)]
pub(super) struct Metrics {
    pub(super) wait: Histogram,
    pub(super) step: Histogram,
    pub(super) job: Histogram,
    mean_job: Mutex<Option<f64>>,
    http: Mutex<BTreeMap<Asked, Histogram>>,
}

impl Metrics {
    pub(super) fn answered(&self, asked: Asked, time: Duration) {
        let mut http = self.http.lock().unwrap_or_else(PoisonError::into_inner);
        http.entry(asked).or_default().observe(time);
    }

    pub(super) fn drawn(&self, time: Duration) {
        self.job.observe(time);
        let mut mean = self.mean_job.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = time.as_secs_f64();
        *mean = Some(mean.map_or(newest, |mean| mean + NEWEST * (newest - mean)));
    }

    /// How long a job is drawn, of late; a second before the first.
    pub(super) fn mean_job_seconds(&self) -> f64 {
        self.mean_job.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or(1.0)
    }
}

/// All of it.
pub(super) fn text(shared: &Shared) -> String {
    let mut text = String::new();
    let metrics = &shared.metrics;
    let stats = shared.engine().map(|engine| engine.stats()).unwrap_or_default();
    let gauge = |text: &mut String, name: &str, help: &str, value: f64| {
        head(text, name, help, "gauge");
        line(text, name, value);
    };
    gauge(&mut text, "tch_flux_queue_length", "Jobs that wait.", stats.waiting as f64);
    gauge(&mut text, "tch_flux_jobs_running", "Jobs that are drawn.", stats.running as f64);
    gauge(&mut text, "tch_flux_workers", "Threads that draw.", stats.workers as f64);
    let active = shared.active.count() as f64;
    gauge(&mut text, "tch_flux_http_requests_active", "Requests that are not answered to the end.", active);
    let uploads = shared.uploads.taken() as f64;
    gauge(&mut text, "tch_flux_upload_bytes", "Bodies, and pictures decoded from them.", uploads);
    let kept = shared.shelf.bytes() as f64;
    gauge(&mut text, "tch_flux_kept_picture_bytes", "Pictures that are kept for their addresses.", kept);

    head(&mut text, "tch_flux_jobs_total", "Jobs by outcome.", "counter");
    let outcomes = [
        ("finished", stats.finished),
        ("failed", stats.failed),
        ("cancelled", stats.cancelled),
        ("refused", stats.refused),
    ];
    for (outcome, count) in outcomes {
        line(&mut text, &format!("tch_flux_jobs_total{{outcome=\"{outcome}\"}}"), count);
    }
    let histograms = [
        ("tch_flux_queue_wait_seconds", "How long jobs waited.", &metrics.wait),
        (
            "tch_flux_step_seconds",
            "How long a step of the transformer took, once for each job in it.",
            &metrics.step,
        ),
        ("tch_flux_job_seconds", "How long jobs were drawn.", &metrics.job),
    ];
    for (name, help, histogram) in histograms {
        head(&mut text, name, help, "histogram");
        histogram.write(&mut text, name, "");
    }
    memory(&mut text, shared);
    http(&mut text, metrics);
    text
}

fn memory(text: &mut String, shared: &Shared) {
    if let Some(bytes) = resident_bytes() {
        head(text, "process_resident_memory_bytes", "Memory of the process.", "gauge");
        line(text, "process_resident_memory_bytes", bytes);
    }
    let devices = shared.devices();
    let free: Vec<_> = devices.iter().filter_map(|device| Some((*device, free_bytes(*device)?))).collect();
    if !free.is_empty() {
        head(text, "tch_flux_device_free_bytes", "Memory that is free on a device.", "gauge");
    }
    for (device, bytes) in free {
        let name = format!("{device:?}").to_lowercase();
        line(text, &format!("tch_flux_device_free_bytes{{device=\"{name}\"}}"), bytes);
    }
}

fn http(text: &mut String, metrics: &Metrics) {
    let http = metrics.http.lock().unwrap_or_else(PoisonError::into_inner);
    let name = "tch_flux_http_request_seconds";
    head(
        text,
        name,
        "How long requests took until their answer began, by route, method and status.",
        "histogram",
    );
    for (Asked { route, method, status }, histogram) in http.iter() {
        let labels = format!("route=\"{route}\",method=\"{method}\",status=\"{status}\",");
        histogram.write(text, name, &labels);
    }
    let name = "tch_flux_http_requests_total";
    head(text, name, "Requests by route, method and status.", "counter");
    for (Asked { route, method, status }, histogram) in http.iter() {
        let count: u64 = histogram.counts.iter().map(|count| count.load(Ordering::Relaxed)).sum();
        line(text, &format!("{name}{{route=\"{route}\",method=\"{method}\",status=\"{status}\"}}"), count);
    }
}

fn head(text: &mut String, name: &str, help: &str, r#type: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {type}");
}

fn line(text: &mut String, name: &str, value: impl std::fmt::Display) {
    let _ = writeln!(text, "{name} {value}");
}

/// What the process holds in memory, where the system says it.
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
