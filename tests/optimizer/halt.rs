//! Tests of `NonFinitePolicy`: a given number of skipped steps in a row halts training on the device, without the host. Steps submitted after that
//! change nothing, bit for bit, and their records say so. The next drain, or the next step on the host, returns an error that names tensor, element,
//! count and the first step. After `resume`, training continues as if the skipped steps had not been submitted.
//!
//! Each of these faults was introduced by hand once and made a test fail: a good step that does not reset the count, pass 3 that checks only the
//! gradient after a halt, and a resume without the drain.

use wgpu_optim::internals::layout::GroupState;
use wgpu_optim::{Error, ErrorKind, LossScaler, NonFinite, NonFinitePolicy, Regime, Rule};
use wgpu_optim_conformance::run::{Run, Setup, Spec, bits, devices, every_path_with, gpu_run_with};
use wgpu_optim_conformance::spec::without_counts;
use wgpu_optim_conformance::{Numbers, assert_refused, assert_says, step, submit};

use crate::helpers::pairs_with;

fn setup(after: u32) -> Setup {
    Setup { policy: NonFinitePolicy::Error { after }, ..Setup::default() }
}

/// Returns two groups, since a bad gradient in one also skips the step of the other.
fn specs() -> Vec<Spec> {
    let mut numbers = Numbers(1);
    vec![
        Spec::new(Rule::sgd(), Regime::seesaw(), vec![numbers.vec(301), numbers.vec(7)]).named("counters"),
        Spec::new(Rule::sgdm(0.9), Regime::norm_ratio(), vec![numbers.vec(50)]).named("momentum"),
    ]
}

/// Returns the gradients of a step. `bad` of them are not finite, from the third element of the second tensor on.
fn gradients(t: u64, bad: usize) -> Vec<Vec<f32>> {
    let mut numbers = Numbers(100 + t);
    let mut grads = vec![numbers.vec(301), numbers.vec(7), numbers.vec(50)];
    grads[1][3..3 + bad].fill(f32::INFINITY);
    grads
}

/// Takes a step and reads the records, and returns the first error.
fn step_and_tell(run: &mut dyn Run, grads: &[Vec<f32>]) -> Result<(), Error> {
    run.try_step(grads)?;
    run.try_records().map(|_| ())
}

#[test]
fn three_in_a_row_halt_and_two_do_not() {
    let specs = specs();
    for (mut run, mut undisturbed) in pairs_with((&specs, setup(3)), (&specs, Setup::default())) {
        let path = run.path();
        let told: Vec<Result<(), Error>> = [0, 0, 2, 1, 0, 1, 1]
            .iter()
            .enumerate()
            .map(|(t, &bad)| step_and_tell(run.as_mut(), &gradients(t as u64, bad)))
            .collect();
        assert!(told.iter().all(Result::is_ok), "{path}: {told:?}");
        let (before, states) = (bits(&run.params()), run.states());

        let words = [
            "3 steps in a row were skipped, from step 5 on",
            "2 non-finite elements, the first in tensor \"counters/1\" at index 3;",
        ];
        // The third bad step in a row, then good and bad ones.
        for (t, bad) in [(7, 2), (8, 0), (9, 4), (10, 0)] {
            let told = step_and_tell(run.as_mut(), &gradients(t, bad));
            assert_eq!(assert_refused(told, &words).kind(), ErrorKind::Halted, "{path}, step {t}");
        }
        assert!(bits(&run.params()) == before, "{path}: parameters changed");
        let after = run.states();
        assert!(after.iter().all(|state| state.halted == 1), "{path}");
        assert!(states.iter().all(|state| state.skips_in_row == 2), "{path}");
        for (a, b) in without_counts(&states).into_iter().zip(without_counts(&after)) {
            assert_eq!(a, GroupState { halted: 0, ..b }, "{path}");
        }

        run.resume();
        let records = run.records();
        assert_eq!(records.lost_steps, 0, "{path}");
        let halted = || records.records.iter().filter(|record| record.step >= 7);
        let of_first = halted().filter(|record| record.group == 0);
        let said: Vec<(u64, u32)> = of_first.map(|record| (record.step, record.skips_in_row)).collect();
        assert_eq!(said, [(7, 3), (8, 4), (9, 5), (10, 6)], "{path}");
        for record in halted() {
            assert!(record.flags.halted() && record.flags.skipped() && record.norm.is_nan(), "{path}");
            assert_eq!(record.nonfinite, Some(NonFinite { count: 2, tensor: 1, element: 3 }), "{path}");
            assert_says(record, &["; halted, "]);
        }

        for t in [0, 1, 4] {
            undisturbed.step(&gradients(t, 0));
        }
        for t in 11..14 {
            run.step(&gradients(t, 0));
            undisturbed.step(&gradients(t, 0));
        }
        let what = format!("{path}: the halt left a trace");
        assert!(bits(&run.params()) == bits(&undisturbed.params()), "{what}");
        assert_eq!(without_counts(&run.states()), without_counts(&undisturbed.states()), "{what}");
        assert!(run.records().records.iter().all(|r| !r.flags.skipped()));
        // Training can halt again.
        for t in 14..16 {
            assert_eq!(step_and_tell(run.as_mut(), &gradients(t, 1)), Ok(()));
        }
        let again = step_and_tell(run.as_mut(), &gradients(16, 1));
        assert_eq!(assert_refused(again, &["from step 14 on"]).kind(), ErrorKind::Halted, "{path}");
    }
}

/// The message gives the number of steps, the element and the remedy.
#[test]
fn the_error_says_what_happened_and_what_to_do() {
    for mut run in every_path_with(&specs(), setup(1)) {
        let words =
            ["1 steps in a row", "from step 0 on", "1 non-finite element,", "\"counters/1\" at index 3", "call resume"];
        assert_refused(step_and_tell(run.as_mut(), &gradients(0, 1)), &words);
    }
}

/// Steps in one submit halt without the host, and with a ring of the smallest size the last record is enough for the error.
#[test]
fn steps_in_one_submit_halt_by_themselves() {
    for gpu in &devices() {
        let setup = Setup { record_steps: Some(1), ..setup(4) };
        let mut run = gpu_run_with(gpu, &specs(), setup);
        run.step(&gradients(0, 0));
        let before = bits(&run.params());
        run.write_grads(&gradients(1, 1));
        submit(gpu, |encoder| (0..9).for_each(|_| run.optimizer.encode_step(encoder).expect("alive")));
        // A good step after the halt changes nothing.
        run.write_grads(&gradients(2, 0));
        step(gpu, &run.optimizer);
        assert!(bits(&run.params()) == before, "{}", run.path());
        // The drain that never waits returns the error too, once it has a record.
        let told = (0..10_000)
            .find_map(|_| {
                std::thread::sleep(std::time::Duration::from_millis(1));
                run.optimizer.try_drain_records().err()
            })
            .expect("it is told");
        assert_says(&told, &["4 steps in a row", "from step 1 on"]);
        assert_eq!(run.try_records().err(), Some(told.clone()), "{}", run.path());
        assert_eq!(run.optimizer.try_drain_records().err(), Some(told));

        // Steps that were submitted after the last drain and before the host resumes are not a second halt.
        step(gpu, &run.optimizer);
        run.resume();
        assert!(bits(&run.params()) == before, "{}", run.path());
        let halted = run.records();
        assert_eq!(halted.records.last().map(|record| record.step), Some(11));
        run.step(&gradients(3, 0));
        let records = run.records();
        assert_eq!(records.lost_steps, 0);
        assert!(
            records.records.iter().all(|record| !record.flags.skipped() && record.step == 12),
            "{}: {records:?}",
            run.path()
        );
        assert!(bits(&run.params()) != before);
    }
}

#[test]
fn a_loss_that_is_not_finite_halts_too_and_is_named() {
    let spec = Spec::new(Rule::sgd(), Regime::polyak(), vec![vec![1.0; 9]]);
    for mut run in every_path_with(std::slice::from_ref(&spec), setup(2)) {
        run.set_loss(f32::NAN);
        let grads = [vec![1.0; 9]];
        assert_eq!(step_and_tell(run.as_mut(), &grads), Ok(()));
        let error = step_and_tell(run.as_mut(), &grads).expect_err("halted");
        assert_says(&error, &["2 steps in a row", "from step 0 on", "for a loss that was not finite;"]);
        run.set_loss(1.0);
        assert_eq!(step_and_tell(run.as_mut(), &grads), Err(error));
        run.resume();
        assert_eq!(step_and_tell(run.as_mut(), &grads), Ok(()));
    }
}

/// With a loss scaler, skipped steps count only at the smallest scale: before that, a smaller scale may be the remedy.
#[test]
fn with_a_loss_scaler_skips_count_from_the_smallest_scale_on() {
    let setup =
        Setup { scaler: Some(LossScaler { initial_scale: 8.0, min_scale: 2.0, ..LossScaler::default() }), ..setup(2) };
    for mut run in every_path_with(&specs(), setup) {
        let path = run.path();
        let mut said = Vec::new();
        let error = (0..)
            .find_map(|t| {
                said.push(run.loss_scale());
                step_and_tell(run.as_mut(), &gradients(t, 1)).err()
            })
            .expect("it halts");
        assert_eq!(said, [8.0, 4.0, 2.0, 2.0], "{path}");
        assert_says(&error, &["2 steps in a row", "from step 2 on"]);
        // A halted step does not change the scale.
        assert!(step_and_tell(run.as_mut(), &gradients(9, 1)).is_err());
        assert_eq!(run.loss_scale(), 2.0, "{path}");
    }
}

/// A loss that is not finite, with a finite gradient, does not lower the scale.
#[test]
fn a_bad_loss_leaves_the_scale_alone() {
    let spec = Spec::new(Rule::sgd(), Regime::ngn(), vec![vec![1.0; 9]]);
    let setup = Setup { scaler: Some(LossScaler::default()), ..setup(2) };
    for mut run in every_path_with(std::slice::from_ref(&spec), setup) {
        run.set_loss(f32::INFINITY);
        assert_eq!(step_and_tell(run.as_mut(), &[vec![1.0; 9]]), Ok(()));
        // A gradient that is not finite lowers the scale and resets the count.
        assert_eq!(step_and_tell(run.as_mut(), &[vec![f32::NAN; 9]]), Ok(()));
        assert_eq!(run.loss_scale(), 32768.0, "{}", run.path());
        assert_eq!(step_and_tell(run.as_mut(), &[vec![1.0; 9]]), Ok(()));
        assert!(step_and_tell(run.as_mut(), &[vec![1.0; 9]]).is_err());
        assert_eq!(run.loss_scale(), 32768.0, "{}", run.path());
    }
}
