//! Warnings of combinations that can be built but are known to fail.

use std::fmt;

use crate::regime::Regime;
use crate::rule::Rule;
use crate::schedule::Schedule;

/// A combination that is valid and is known to fail, with what to use instead: [`OptimizerBuilder::warnings`] lists them, and `build`
/// writes each to the [`log`](https://docs.rs/log), as a warning of the target `wgpu_optim::warnings`.
///
/// The text of [`Display`](fmt::Display) says which group, why, and what to use.
///
/// [`OptimizerBuilder::warnings`]: crate::OptimizerBuilder::warnings
#[derive(Debug, Clone, PartialEq)]
pub struct Warning {
    group: String,
    regime: Regime,
    cause: Cause,
}

#[derive(Debug, Clone, PartialEq)]
enum Cause {
    /// The regime's formula assumes a step along the gradient. With this rule the step is longer or points elsewhere, and the rate diverges.
    /// See [`Regime::suits`].
    Rule(Rule),
    /// The schedule rises over a large part of the run. While it holds the rate down, successive steps agree and the regime raises its own
    /// part of the rate; when the schedule has risen, the product of both is far too large. See [`Regime::suits_schedule`].
    Schedule(Schedule),
}

impl Warning {
    /// Log target of the warnings that `build` writes.
    pub(crate) const LOG_TARGET: &'static str = "wgpu_optim::warnings";

    /// Returns the name of the group.
    pub fn group(&self) -> &str {
        &self.group
    }

    /// Returns the warnings for a group with these settings.
    pub(crate) fn of(group: &str, rule: Rule, regime: Regime, schedule: Schedule) -> Vec<Self> {
        let mut warnings = Vec::new();
        if !regime.suits(&rule) {
            warnings.push(Warning { group: group.to_owned(), regime, cause: Cause::Rule(rule) });
        }
        if !regime.suits_schedule(&schedule) {
            warnings.push(Warning { group: group.to_owned(), regime, cause: Cause::Schedule(schedule) });
        }
        warnings
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Warning { group, regime, cause } = self;
        write!(f, "group \"{group}\": ")?;
        match cause {
            Cause::Rule(rule) => {
                write!(f, "regime {} is known to fail with rule {}, whose momentum ", regime.name(), rule.name())?;
                match regime {
                    Regime::BarzilaiBorwein(_) => write!(
                        f,
                        "turns the step away from the gradient it is computed from: use rule sgd with large batches, or regime seesaw, \
                         the default, which goes with every rule"
                    ),
                    _ => write!(
                        f,
                        "makes the step many times longer than its formula supposes: use rule sgd, signsgd or adamw, or regime seesaw, \
                         the default, which goes with every rule"
                    ),
                }
            }
            Cause::Schedule(schedule) => write!(
                f,
                "schedule {} rises over {} of {} steps, and regime {} raises the rate by itself while the schedule holds it down, so that \
                 the two together end far too high: use a warm-up of at most a tenth of the steps, or no schedule",
                schedule.name(),
                schedule.rise(),
                schedule.steps(),
                regime.name()
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::regime::SecantForm;
    use crate::{Group, OptimizerBuilder};

    fn texts(builder: &OptimizerBuilder<crate::cpu::Tensor>) -> Vec<String> {
        builder.warnings().iter().map(Warning::to_string).collect()
    }

    /// Each group's own settings count, and the builder's where it has none; nothing is refused.
    #[test]
    fn warnings_name_the_group_and_what_to_use() {
        let empty: &[f32] = &[];
        let builder = OptimizerBuilder::new(Rule::sgdm(0.9))
            .regime(Regime::dog())
            .group(Group::new("fails").tensor("a", empty, empty))
            .group(Group::new("works").rule(Rule::sgd()).tensor("b", empty, empty))
            .group(
                Group::new("rises")
                    .regime(Regime::seesaw())
                    .schedule(Schedule::OneCycle { rise: 30, steps: 100, first: 0.04, last: 0.0 })
                    .tensor("c", empty, empty),
            );
        let texts = texts(&builder);
        assert_eq!(texts.len(), 2, "{texts:?}");
        for (text, words) in texts.iter().zip([
            ["group \"fails\"", "dog", "sgdm", "use rule sgd"],
            ["group \"rises\"", "one-cycle", "30 of 100", "seesaw"],
        ]) {
            for word in words {
                assert!(text.contains(word), "{word}: {text}");
            }
        }
        builder.build_cpu().expect("a warning is no error");
    }

    /// There are warnings for what fails in the tables of docs/results.md, and none for what works there.
    #[test]
    fn warnings_are_those_of_the_tables() {
        let momentum = [Rule::sgdm(0.9), Rule::nesterov(0.9), Rule::signum(0.9), Rule::lion()];
        for regime in [
            Regime::dog(),
            Regime::dowg(),
            Regime::barzilai_borwein(SecantForm::Long),
            Regime::barzilai_borwein(SecantForm::Short),
            Regime::barzilai_borwein(SecantForm::Geometric),
        ] {
            assert!(momentum.iter().all(|rule| !regime.suits(rule)), "{regime:?}");
            // Without momentum in it, it is SGD under another name.
            assert!(regime.suits(&Rule::sgd()) && regime.suits(&Rule::sgdm(0.0)));
        }
        assert!(!Regime::polyak().suits(&Rule::sgdm(0.9)));
        for rule in Rule::all() {
            assert!(Regime::seesaw().suits(&rule) && Regime::ngn().suits(&rule));
            assert_eq!(Regime::polyak().suits(&rule), !matches!(rule, Rule::Sgdm { .. }));
        }
        let cosine = |warmup| Schedule::WarmupCosine { warmup, steps: 100, last: 0.0 };
        assert!(Regime::seesaw().suits_schedule(&cosine(10)));
        assert!(!Regime::seesaw().suits_schedule(&cosine(11)));
        assert!(!Regime::hypergradient().suits_schedule(&cosine(50)));
        assert!(Regime::fixed(0.1).suits_schedule(&cosine(50)));
        assert!(Regime::norm_ratio().suits_schedule(&cosine(50)));
    }
}
