//! The server's metrics, and their text for Prometheus.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tch::Device;

use tch_flux::engine::Stats;
use tch_flux::ops::cuda;

/// Upper bounds in seconds, from a small model's step to a large picture.
const BUCKETS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 600.0];
/// The weight of the last job in the moving mean.
const MEAN_WEIGHT: f64 = 0.2;

/// A histogram of times.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    /// The count of each bucket alone; the last bucket has no upper bound.
    counts: [AtomicU64; BUCKETS.len() + 1],
    micros: AtomicU64,
}

impl Histogram {
    pub(crate) fn observe(&self, time: Duration) {
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

/// The labels of a request. There are few combinations, since routes, methods and statuses are few.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
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
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) wait: Histogram,
    pub(crate) step: Histogram,
    pub(crate) job: Histogram,
    mean_job: Mutex<Option<f64>>,
    http: Mutex<BTreeMap<RequestLabels, Histogram>>,
}

impl Metrics {
    /// Counts a request and the time until its response began.
    pub(crate) fn observe_request(&self, labels: RequestLabels, time: Duration) {
        let mut http = self.http.lock().unwrap_or_else(PoisonError::into_inner);
        http.entry(labels).or_default().observe(time);
    }

    /// Counts the time of a finished job.
    pub(crate) fn observe_job(&self, time: Duration) {
        self.job.observe(time);
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
        let mut text = String::new();
        let gauge = |text: &mut String, name: &str, help: &str, value: f64| {
            head(text, name, help, "gauge");
            line(text, name, value);
        };
        gauge(&mut text, "tch_flux_queue_length", "Jobs that wait.", gauges.engine.waiting as f64);
        gauge(&mut text, "tch_flux_jobs_running", "Jobs that are drawn.", gauges.engine.running as f64);
        gauge(&mut text, "tch_flux_workers", "Threads that draw.", gauges.engine.workers as f64);
        let active = gauges.active_requests as f64;
        gauge(
            &mut text,
            "tch_flux_http_requests_active",
            "Requests that are not answered to the end.",
            active,
        );
        let uploads = gauges.upload_bytes as f64;
        gauge(&mut text, "tch_flux_upload_bytes", "Bodies, and pictures decoded from them.", uploads);
        let kept = gauges.stored_image_bytes as f64;
        gauge(&mut text, "tch_flux_kept_picture_bytes", "Pictures that are kept for their addresses.", kept);

        head(&mut text, "tch_flux_jobs_total", "Jobs by outcome.", "counter");
        let outcomes = [
            ("finished", gauges.engine.finished),
            ("failed", gauges.engine.failed),
            ("cancelled", gauges.engine.cancelled),
            ("refused", gauges.engine.refused),
        ];
        for (outcome, count) in outcomes {
            line(&mut text, &format!("tch_flux_jobs_total{{outcome=\"{outcome}\"}}"), count);
        }
        let histograms = [
            ("tch_flux_queue_wait_seconds", "How long jobs waited.", &self.wait),
            (
                "tch_flux_step_seconds",
                "How long a step of the transformer took, once for each job in it.",
                &self.step,
            ),
            ("tch_flux_job_seconds", "How long jobs were drawn.", &self.job),
        ];
        for (name, help, histogram) in histograms {
            head(&mut text, name, help, "histogram");
            histogram.write(&mut text, name, "");
        }
        write_memory(&mut text, gauges.devices);
        self.write_requests(&mut text);
        text
    }

    fn write_requests(&self, text: &mut String) {
        let http = self.http.lock().unwrap_or_else(PoisonError::into_inner);
        let name = "tch_flux_http_request_seconds";
        head(
            text,
            name,
            "How long requests took until their answer began, by route, method and status.",
            "histogram",
        );
        for (RequestLabels { route, method, status }, histogram) in http.iter() {
            let labels = format!("route=\"{route}\",method=\"{method}\",status=\"{status}\",");
            histogram.write(text, name, &labels);
        }
        let name = "tch_flux_http_requests_total";
        head(text, name, "Requests by route, method and status.", "counter");
        for (RequestLabels { route, method, status }, histogram) in http.iter() {
            let count: u64 = histogram.counts.iter().map(|count| count.load(Ordering::Relaxed)).sum();
            line(
                text,
                &format!("{name}{{route=\"{route}\",method=\"{method}\",status=\"{status}\"}}"),
                count,
            );
        }
    }
}

fn write_memory(text: &mut String, devices: &[Device]) {
    if let Some(bytes) = resident_bytes() {
        head(text, "process_resident_memory_bytes", "Memory of the process.", "gauge");
        line(text, "process_resident_memory_bytes", bytes);
    }
    let free: Vec<_> = devices.iter().filter_map(|device| Some((*device, free_bytes(*device)?))).collect();
    if !free.is_empty() {
        head(text, "tch_flux_device_free_bytes", "Memory that is free on a device.", "gauge");
    }
    for (device, bytes) in free {
        let name = format!("{device:?}").to_lowercase();
        line(text, &format!("tch_flux_device_free_bytes{{device=\"{name}\"}}"), bytes);
    }
}

fn head(text: &mut String, name: &str, help: &str, r#type: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {type}");
}

fn line(text: &mut String, name: &str, value: impl std::fmt::Display) {
    let _ = writeln!(text, "{name} {value}");
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
