use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::*;
use crate::generation::OnProgress;
use crate::image::Image;
use crate::numerics;

/// Draws what a test tells it to, up to so many at a time.
struct FakeWorker<F> {
    device: Device,
    most: usize,
    drawn: F,
    released: Arc<AtomicUsize>,
}

impl<F> Worker for FakeWorker<F>
where
    F: FnMut(&[&Request], &mut OnBatchProgress) -> Result<Vec<Result<Vec<Generated>>>> + Send + 'static,
{
    fn device(&self) -> Device {
        self.device
    }
    fn max_batch(&self, _: &Request) -> usize {
        self.most
    }
    fn can_batch(&self, one: &Request, other: &Request) -> bool {
        one.width == other.width
    }
    fn draw(
        &mut self,
        requests: &[&Request],
        on_progress: &mut OnBatchProgress,
    ) -> Result<Vec<Result<Vec<Generated>>>> {
        (self.drawn)(requests, on_progress)
    }
    fn release(&mut self) {
        self.released.fetch_add(1, Ordering::Relaxed);
    }
}

/// One that draws up to so many at a time.
fn fake_worker<F>(most: usize, drawn: F) -> FakeWorker<F>
where
    F: FnMut(&[&Request], &mut OnBatchProgress) -> Result<Vec<Result<Vec<Generated>>>> + Send + 'static,
{
    FakeWorker { device: Device::Cpu, most, drawn, released: Arc::default() }
}

type One = dyn FnMut(&[&Request], &mut OnBatchProgress) -> Result<Vec<Result<Vec<Generated>>>> + Send;

/// One that draws one at a time.
fn worker(
    mut drawn: impl FnMut(&Request, &mut OnProgress) -> Result<Vec<Generated>> + Send + 'static,
) -> FakeWorker<Box<One>> {
    fake_worker(
        1,
        Box::new(move |requests: &[&Request], on_progress: &mut OnBatchProgress| {
            drawn(requests[0], &mut |progress| on_progress(0, progress)).map(|pictures| vec![Ok(pictures)])
        }) as Box<One>,
    )
}

fn pictures(request: &Request) -> Result<Vec<Generated>> {
    let image = Image { width: 1, height: 1, rgb: vec![request.seed as u8; 3] };
    Ok(vec![Generated { image, request: request.clone(), warnings: Vec::new(), skipped: (0, 0) }])
}

fn request(seed: u64) -> Request {
    Request::new("a picture", 64, 64).seed(seed)
}

fn queue(queue: usize) -> Options {
    Options { queue }
}

/// An engine whose jobs each wait until the test lets one pass.
fn held() -> (Engine, mpsc::Sender<()>) {
    let (pass, wait) = mpsc::channel();
    let worker = worker(move |request, _| {
        wait.recv_timeout(Duration::from_secs(30)).map_err(|_| Error::Cancelled)?;
        pictures(request)
    });
    (Engine::start_workers([worker], queue(2)).unwrap(), pass)
}

fn until(done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < deadline, "it never came to pass");
        thread::sleep(Duration::from_millis(1));
    }
}

fn events(job: &Job) -> Vec<Event> {
    std::iter::from_fn(|| job.recv()).collect()
}

fn is_last(event: &Event) -> bool {
    matches!(event, Event::Finished(_) | Event::Failed(_))
}

#[test]
fn a_handle_goes_to_every_thread() {
    fn is<T: Clone + Send + Sync + 'static>() {}
    is::<Engine>();
    fn is_send<T: Send>() {}
    is_send::<Job>();
    is_send::<Pipeline>();
}

#[test]
fn the_queue_is_bounded_and_tells_places() {
    let (engine, pass) = held();
    let jobs = [0, 1, 2].map(|seed| {
        let job = engine.submit(request(seed)).unwrap();
        until(|| engine.stats().running == 1);
        job
    });
    let refused = engine.submit(request(3)).unwrap_err();
    assert!(matches!(refused, Error::Full { waiting: 2, queue: 2 }), "{refused}");
    assert_eq!(refused.to_string(), "the queue is full: 2 of at most 2 jobs are waiting; try again later");
    let stats = engine.stats();
    assert_eq!((stats.waiting, stats.running, stats.workers, stats.refused), (2, 1, 1, 1));
    (0..3).for_each(|_| pass.send(()).unwrap());
    let [first, second, third] = jobs.map(|job| {
        let mut places = Vec::new();
        let events = events(&job);
        assert_eq!(events.iter().filter(|event| is_last(event)).count(), 1);
        for event in events {
            match event {
                Event::Queued { ahead } => places.push(ahead),
                Event::Finished(pictures) => assert_eq!(u64::from(pictures[0].image.rgb[0]), job.id()),
                other => panic!("{other:?}"),
            }
        }
        places
    });
    assert_eq!((first, second, third), (vec![0], vec![0], vec![1, 0]));
    assert_eq!(engine.stats().finished, 3);
}

#[test]
fn what_waits_goes_at_once_when_it_is_cancelled_or_dropped() {
    let (engine, pass) = held();
    let running = engine.submit(request(0)).unwrap();
    until(|| engine.stats().running == 1);
    let (cancelled, dropped) = (engine.submit(request(1)).unwrap(), engine.submit(request(2)).unwrap());
    cancelled.cancel();
    drop(dropped);
    assert_eq!(engine.stats().waiting, 0);
    assert!(matches!(events(&cancelled)[..], [Event::Queued { ahead: 0 }, Event::Failed(Error::Cancelled)]));
    cancelled.cancel();
    pass.send(()).unwrap();
    assert_eq!(running.wait().unwrap()[0].request.seed, 0);
    assert_eq!((engine.stats().cancelled, engine.stats().finished), (2, 1));
}

#[test]
fn a_job_that_is_dropped_is_cancelled_while_it_is_drawn() {
    let (begun, has_begun) = mpsc::channel();
    let worker = worker(move |_, _| {
        begun.send(()).map_err(|_| Error::Stopped)?;
        loop {
            numerics::check_cancelled(&tch::Tensor::from(0.0))?;
            thread::sleep(Duration::from_millis(1));
        }
    });
    let engine = Engine::start_workers([worker], queue(2)).unwrap();
    let job = engine.submit(request(0)).unwrap();
    has_begun.recv().unwrap();
    drop(job);
    until(|| engine.stats().cancelled == 1);
    assert!(engine.drain(Instant::now() + Duration::from_secs(30)));
}

#[test]
fn after_a_panic_or_without_memory_the_next_job_succeeds() {
    let mut count = 0;
    let mut worker = worker(move |request, _| {
        count += 1;
        match count {
            1 => panic!("a fault of number {count}"),
            2 => panic!(
                "called `Result::unwrap()` on an `Err` value: Torch(\"DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.\")"
            ),
            3 => {
                Err(tch::TchError::Torch("CUDA out of memory. Tried to allocate 2.00 GiB\nmore".into())
                    .into())
            }
            4 => Err(Error::Request("no".into())),
            _ => pictures(request),
        }
    });
    worker.device = Device::Cuda(0);
    let released = worker.released.clone();
    let engine = Engine::start_workers([worker], queue(8)).unwrap();
    let draw = || engine.submit(request(5)).unwrap().wait();
    assert!(matches!(draw(), Err(Error::Panicked(text)) if text == "a fault of number 1"));
    assert!(matches!(draw(), Err(Error::OutOfMemory(text)) if text.contains("can't allocate memory")));
    assert!(matches!(draw(), Err(Error::OutOfMemory(text)) if text.ends_with("2.00 GiB")));
    assert!(matches!(draw(), Err(Error::Request(_))));
    assert_eq!(draw().unwrap()[0].image.rgb, [5; 3]);
    assert_eq!(
        released.load(Ordering::Relaxed),
        3,
        "what an error left half-done was let go of, and nothing else"
    );
    let stats = engine.stats();
    assert_eq!((stats.failed, stats.finished, stats.workers), (4, 1, 1));
}

#[test]
fn a_lost_device_ends_its_thread_and_the_others_go_on() {
    let lost = |request: &Request, _: &mut OnProgress| match request.seed {
        0 => {
            Err(tch::TchError::Torch("CUDA error: an illegal memory access was encountered\nmore".into())
                .into())
        }
        _ => pictures(request),
    };
    let on = |device| FakeWorker { device, ..worker(lost) };
    let engine = Engine::start_workers([on(Device::Cuda(0)), on(Device::Cuda(1))], queue(8)).unwrap();
    let outcome = engine.submit(request(0)).unwrap().wait();
    let Err(Error::DeviceLost { device: Device::Cuda(_), reason }) = outcome else { panic!("{outcome:?}") };
    assert_eq!(reason, "CUDA error: an illegal memory access was encountered");
    until(|| engine.stats().workers == 1);
    assert!(engine.submit(request(1)).unwrap().wait().is_ok());
    assert!(matches!(engine.submit(request(0)).unwrap().wait(), Err(Error::DeviceLost { .. })));
    until(|| engine.stats().workers == 0);
    assert!(matches!(engine.submit(request(1)), Err(Error::Stopped)));
}

#[test]
fn on_the_cpu_such_words_lose_no_device() {
    let text = || tch::TchError::Torch("an illegal memory access".into());
    assert!(matches!(classify::named(text().into(), Device::Cpu), Error::Tch(_)));
}

#[test]
fn a_closed_engine_draws_what_it_has_and_takes_no_more() {
    let (engine, pass) = held();
    let first = engine.submit(request(0)).unwrap();
    let second = engine.submit(request(1)).unwrap();
    engine.close();
    assert!(matches!(engine.submit(request(2)), Err(Error::Stopped)));
    assert!(!engine.drain(Instant::now() + Duration::from_millis(20)), "both are still to be drawn");
    (0..2).for_each(|_| pass.send(()).unwrap());
    assert!(engine.drain(Instant::now() + Duration::from_secs(30)));
    assert!(first.wait().is_ok() && second.wait().is_ok());
    until(|| engine.stats().workers == 0);
}

#[test]
fn without_a_handle_what_waits_fails_and_what_is_drawn_is_cancelled() {
    let worker = worker(|_, on_progress| {
        loop {
            if on_progress(Progress::Phase(Phase::Denoise)).is_break() {
                return Err(Error::Cancelled);
            }
            thread::sleep(Duration::from_millis(1));
        }
    });
    let engine = Engine::start_workers([worker], queue(2)).unwrap();
    let running = engine.submit(request(0)).unwrap();
    until(|| engine.stats().running == 1);
    let waiting = engine.submit(request(1)).unwrap();
    drop(engine.clone());
    assert_eq!(engine.stats().running, 1, "a clone is not the last");
    drop(engine);
    assert!(matches!(waiting.wait(), Err(Error::Stopped)));
    assert!(matches!(running.wait(), Err(Error::Cancelled)));
}

#[test]
fn events_are_waited_for_without_a_thread() {
    let (engine, pass) = held();
    let mut job = engine.submit(request(3)).unwrap();
    let mut context = Context::from_waker(Waker::noop());
    let first = std::pin::pin!(job.next()).poll(&mut context);
    assert!(matches!(first, Poll::Ready(Some(Event::Queued { ahead: 0 }))));
    assert!(std::pin::pin!(job.next()).poll(&mut context).is_pending());
    pass.send(()).unwrap();
    until(|| engine.stats().finished == 1);
    let last = std::pin::pin!(job.next()).poll(&mut context);
    assert!(matches!(last, Poll::Ready(Some(Event::Finished(_)))));
    assert!(matches!(std::pin::pin!(job.next()).poll(&mut context), Poll::Ready(None)));
}

#[test]
fn an_engine_needs_a_pipeline_and_a_request_that_can_be_drawn() {
    assert!(matches!(Engine::start([], Options::default()), Err(Error::Config(_))));
    let (engine, _pass) = held();
    let request = Request::new("a picture", 65, 64);
    assert!(matches!(engine.submit(request), Err(Error::Parameter(_))));
}

/// Requests of a width, each told by its seed.
fn sized(seed: u64, width: i64) -> Request {
    Request { width, ..request(seed) }
}

#[test]
fn what_waits_and_is_alike_is_drawn_together_in_the_order_of_the_queue() {
    let (pass, wait) = mpsc::channel();
    let (tell, told) = mpsc::channel();
    let worker = fake_worker(3, move |requests: &[&Request], _: &mut OnBatchProgress| {
        wait.recv_timeout(Duration::from_secs(30)).map_err(|_| Error::Cancelled)?;
        tell.send(requests.iter().map(|request| request.seed).collect::<Vec<_>>())
            .map_err(|_| Error::Stopped)?;
        Ok(requests.iter().map(|request| pictures(request)).collect())
    });
    let engine = Engine::start_workers([worker], queue(16)).unwrap();
    let first = engine.submit(sized(0, 64)).unwrap();
    until(|| engine.stats().running == 1);
    let two = engine.submit(sized(4, 64).num_images(2)).unwrap();
    let jobs: Vec<_> = [(1, 32), (2, 64), (3, 32), (5, 64), (6, 64), (7, 64)]
        .map(|(seed, width)| engine.submit(sized(seed, width)).unwrap())
        .into();
    (0..5).for_each(|_| pass.send(()).unwrap());
    assert!(first.wait().is_ok() && two.wait().is_ok());
    for (job, seed) in jobs.into_iter().zip([1, 2, 3, 5, 6, 7]) {
        assert_eq!(job.wait().unwrap()[0].request.seed, seed);
    }
    let order: Vec<_> = told.try_iter().collect();
    assert_eq!(order, [vec![0], vec![4, 2], vec![1, 3], vec![5, 6, 7]]);
    assert_eq!(engine.stats().finished, 8);
}

#[test]
fn one_of_several_fails_or_is_cancelled_and_the_others_are_drawn() {
    let (begun, has_begun) = mpsc::channel();
    let (pass, wait) = mpsc::channel::<()>();
    let worker = fake_worker(4, move |requests: &[&Request], on_progress: &mut OnBatchProgress| {
        begun.send(requests.len()).map_err(|_| Error::Stopped)?;
        wait.recv_timeout(Duration::from_secs(30)).map_err(|_| Error::Cancelled)?;
        let step = Progress::Step { image: 0, images: 1, step: 1, steps: 2 };
        let outcome = |(job, request): (usize, &&Request)| match request.seed {
            3 => Err(Error::Request("not this one".into())),
            _ if on_progress(job, step.clone()).is_break() => Err(Error::Cancelled),
            _ => pictures(request),
        };
        Ok(requests.iter().enumerate().map(outcome).collect())
    });
    let engine = Engine::start_workers([worker], queue(8)).unwrap();
    let first = engine.submit(request(0)).unwrap();
    assert_eq!(has_begun.recv().unwrap(), 1);
    let jobs = [1, 2, 3, 4].map(|seed| engine.submit(request(seed)).unwrap());
    pass.send(()).unwrap();
    assert!(first.wait().is_ok());
    assert_eq!(has_begun.recv().unwrap(), 4);
    // While the others are drawn: it ends at once, and its place is free.
    jobs[1].cancel();
    assert!(matches!(events(&jobs[1]).last(), Some(Event::Failed(Error::Cancelled))));
    assert_eq!((engine.stats().running, engine.stats().cancelled), (3, 1));
    pass.send(()).unwrap();
    let [one, _, three, four] = jobs;
    assert!(one.wait().is_ok() && four.wait().is_ok());
    assert!(matches!(three.wait(), Err(Error::Request(_))));
    let stats = engine.stats();
    assert_eq!((stats.finished, stats.failed, stats.cancelled), (3, 1, 1));
}

#[test]
fn when_all_of_several_are_cancelled_the_work_stops_between_two_blocks() {
    let (begun, has_begun) = mpsc::channel();
    let worker = fake_worker(2, move |requests: &[&Request], _: &mut OnBatchProgress| {
        begun.send(requests.len()).map_err(|_| Error::Stopped)?;
        loop {
            numerics::check_cancelled(&tch::Tensor::from(0.0))?;
            thread::sleep(Duration::from_millis(1));
        }
    });
    let engine = Engine::start_workers([worker], queue(8)).unwrap();
    let alone = engine.submit(request(0)).unwrap();
    assert_eq!(has_begun.recv().unwrap(), 1);
    let (one, other) = (engine.submit(request(1)).unwrap(), engine.submit(request(2)).unwrap());
    drop(alone);
    assert_eq!(has_begun.recv().unwrap(), 2);
    drop((one, other));
    assert!(engine.drain(Instant::now() + Duration::from_secs(30)));
    until(|| engine.stats().cancelled == 3);
}

#[test]
fn a_fault_of_one_of_several_is_that_ones_alone() {
    let (pass, wait) = mpsc::channel::<()>();
    let worker = fake_worker(3, move |requests: &[&Request], _: &mut OnBatchProgress| {
        if requests[0].seed == 0 {
            wait.recv_timeout(Duration::from_secs(30)).map_err(|_| Error::Cancelled)?;
        }
        assert!(requests.iter().all(|request| request.seed != 2), "a fault of the second");
        Ok(requests.iter().map(|request| pictures(request)).collect())
    });
    let engine = Engine::start_workers([worker], queue(8)).unwrap();
    let first = engine.submit(request(0)).unwrap();
    until(|| engine.stats().running == 1);
    let [one, two, three] = [1, 2, 3].map(|seed| engine.submit(request(seed)).unwrap());
    pass.send(()).unwrap();
    assert!(first.wait().is_ok() && one.wait().is_ok() && three.wait().is_ok());
    assert!(matches!(two.wait(), Err(Error::Panicked(text)) if text.contains("a fault of the second")));
}
